// One token of each text, or some tokens of one, through a whole TinyFormer, on a CPU, in float32.
//
// Nearly all the time goes into reading the weights, so they are read once, where the model has
// them, by all cores. Work is shared out where a barrier ends it; what is cheap (norms) every thread
// does for itself, which is cheaper than waiting for another.
//
// The tokens are the rows of a batch. States are kept transposed, (size, rows), with as many rows as
// fill vectors: a weight then meets all rows in one instruction, and no vector is ever summed up.
// A single token has one row, and its vectors run along the inputs instead.
//
// decoder_kernel.py fills the structures; decoder_layer.py is the same in torch.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num() { return 0; }
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int64_t MOST_ROWS = 32;
constexpr int64_t OUTPUTS_AT_ONCE = 8;  // enough sums to hide how long an addition takes

typedef float Vector __attribute__((vector_size(4 * LANES)));

struct Matrix {
    const float* weight;  // (outputs, inputs)
    const float* bias;    // (outputs), or none
    int64_t inputs;
    int64_t outputs;      // 0: there is no such matrix
};

struct Norm {
    const float* weight;  // none: the identity
    const float* bias;    // none: RMSNorm, else LayerNorm
    double eps;
};

struct Block {
    Norm attention_norm, mlp_norm, query_norm, key_norm;
    Matrix query, key, value, mix;
    Matrix gate, widen, narrow;
    float* keys;  // (texts, key_value_heads, room, head_dim)
    float* values;
};

struct Decoder {
    int64_t threads, batch, rows, hidden_size, heads, key_value_heads, head_dim, room;
    int64_t is_one_text;  // the rows are tokens of one text, in their order
    int64_t is_pre_norm, activation, num_blocks;
    double scaling;
    const Block* blocks;
    Norm norm;
    Matrix head;
    const float* embeddings;  // (vocab_size, hidden_size)
    const float* positions;   // (room, hidden_size), or none
    const float* cosines;     // (room, head_dim), or none
    const float* sines;       // the first half of each row negative
    const float* score_bias;  // (heads, room) by distance from the last slot, or none
    const int64_t* padding;   // (texts): slots before a text begins, or none
    float* hidden;            // (hidden_size, rows)
    float* projected;         // (heads + 2 * key_value_heads, head_dim, rows)
    float* attended;          // (heads, head_dim, rows)
    float* widened;           // (intermediate_size, rows)
    float* logits;            // (vocab_size, rows)
    float* own;               // (threads, own_size): each thread's scratch
    int64_t own_size;         // hidden_size * rows + 3 * head_dim + room
};

enum { SILU, GELU, SQUARED_RELU };

// Where a row's token stands.
struct Place {
    int64_t text, slot, begin;  // begin: the text's first slot
};

static Place find(const Decoder& decoder, int64_t row, int64_t slot) {
    const int64_t text = decoder.is_one_text ? 0 : row;
    return {text, decoder.is_one_text ? slot + row : slot,
            decoder.padding ? decoder.padding[text] : 0};
}

static Vector load(const float* place) {  // from anywhere: a vector's own place is aligned
    Vector vector;
    std::memcpy(&vector, place, sizeof vector);
    return vector;
}

// One output of one row. Memory is read in order, which is what a single row waits for.
static float dot(const float* states, const float* weight, int64_t inputs) {
    Vector sums[4] = {};
    int64_t input = 0;
    for (; input + 4 * LANES <= inputs; input += 4 * LANES)
#pragma GCC unroll 4
        for (int64_t at = input; at < input + 4 * LANES; at += LANES)
            sums[(at - input) / LANES] += load(states + at) * load(weight + at);
    const Vector lanes = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float total = 0;
    for (int lane = 0; lane < LANES; ++lane) total += lanes[lane];
    for (; input < inputs; ++input) total += states[input] * weight[input];
    return total;
}

// Some outputs of as many rows as a vector has lanes.
template <int OUTPUTS>
static void multiply_lanes(
    const float* states, int64_t rows, const float* weight, int64_t inputs, float* out) {
    Vector sums[OUTPUTS] = {};
    for (int64_t begin = 0; begin < inputs; begin += 16) {  // a cache line of each output's weights
        const int64_t end = std::min<int64_t>(begin + 16, inputs);
#pragma GCC unroll 8
        for (int output = 0; output < OUTPUTS; ++output)
            __builtin_prefetch(weight + (OUTPUTS + output) * inputs + begin);
        for (int64_t input = begin; input < end; ++input) {
            const Vector state = load(states + input * rows);
#pragma GCC unroll 8
            for (int output = 0; output < OUTPUTS; ++output)
                sums[output] += weight[output * inputs + input] * state;
        }
    }
    for (int output = 0; output < OUTPUTS; ++output)
        std::memcpy(out + output * rows, &sums[output], sizeof(Vector));
}

// A group of outputs of all rows, (OUTPUTS_AT_ONCE, rows); returns how many the group has.
static int64_t multiply(
    const Matrix& matrix, int64_t group, const float* states, int64_t rows, float* out) {
    const int64_t begin = group * OUTPUTS_AT_ONCE, inputs = matrix.inputs;
    const int64_t count = std::min(OUTPUTS_AT_ONCE, matrix.outputs - begin);
    const float* weight = matrix.weight + begin * inputs;
    for (int64_t output = 0; output < count && rows == 1; ++output)
        out[output] = dot(states, weight + output * inputs, inputs);
    for (int64_t row = 0; row < rows && rows > 1; row += LANES) {
        if (count == OUTPUTS_AT_ONCE)
            multiply_lanes<OUTPUTS_AT_ONCE>(states + row, rows, weight, inputs, out + row);
        else
            for (int64_t output = 0; output < count; ++output)
                multiply_lanes<1>(
                    states + row, rows, weight + output * inputs, inputs,
                    out + output * rows + row);
    }
    for (int64_t output = 0; output < count && matrix.bias; ++output)
        for (int64_t row = 0; row < rows; ++row)
            out[output * rows + row] += matrix.bias[begin + output];
    return count;
}

static int64_t groups(const Matrix& matrix) {
    return (matrix.outputs + OUTPUTS_AT_ONCE - 1) / OUTPUTS_AT_ONCE;
}

static void normalize(
    const Norm& norm, const float* states, int64_t size, int64_t rows, float* out) {
    if (!norm.weight) {
        if (out != states) std::memcpy(out, states, size * rows * sizeof(float));
        return;
    }
    float mean[MOST_ROWS] = {}, scale[MOST_ROWS] = {};
    for (int64_t i = 0; i < size && norm.bias; ++i)
        for (int64_t row = 0; row < rows; ++row) mean[row] += states[i * rows + row] / size;
    for (int64_t i = 0; i < size; ++i)
        for (int64_t row = 0; row < rows; ++row) {
            const float centred = states[i * rows + row] - mean[row];
            scale[row] += centred * centred;
        }
    for (int64_t row = 0; row < rows; ++row)
        scale[row] = 1 / std::sqrt(scale[row] / size + static_cast<float>(norm.eps));
    for (int64_t i = 0; i < size; ++i)
        for (int64_t row = 0; row < rows; ++row)
            out[i * rows + row] =
                norm.weight[i] * ((states[i * rows + row] - mean[row]) * scale[row])
                + (norm.bias ? norm.bias[i] : 0);
}

static float activate(int64_t kind, float state) {
    if (kind == SILU) return state / (1 + std::exp(-state));
    if (kind == SQUARED_RELU) return state > 0 ? state * state : 0;
    const float inner = 0.7978845608f * (state + 0.044715f * state * state * state);
    return 0.5f * state * (1 + std::tanh(inner));
}

// Reads a head's vector of one row, normalizes it and rotates it to its position.
static void turn(
    const Decoder& decoder, const Norm& norm, int64_t head, int64_t row, int64_t position,
    float* out, float* scratch) {
    const int64_t size = decoder.head_dim, half = size / 2;
    for (int64_t i = 0; i < size; ++i)
        out[i] = decoder.projected[(head * size + i) * decoder.rows + row];
    normalize(norm, out, size, 1, out);
    if (!decoder.cosines) return;
    const float* cosines = decoder.cosines + position * size;
    const float* sines = decoder.sines + position * size;
    std::memcpy(scratch, out + half, half * sizeof(float));
    std::memcpy(scratch + half, out, half * sizeof(float));
    for (int64_t i = 0; i < size; ++i) out[i] = out[i] * cosines[i] + scratch[i] * sines[i];
}

static int64_t cached(const Decoder& decoder, const Place& place, int64_t group) {
    return (place.text * decoder.key_value_heads + group) * decoder.room * decoder.head_dim;
}

// Keeps one row's key and value of a head.
static void remember(
    const Decoder& decoder, const Block& block, int64_t group, int64_t row, const Place& place,
    float* scratch) {
    const int64_t size = decoder.head_dim;
    const int64_t at = cached(decoder, place, group) + place.slot * size;
    turn(decoder, block.key_norm, decoder.heads + group, row, place.slot - place.begin,
         block.keys + at, scratch);
    const int64_t value = decoder.heads + decoder.key_value_heads + group;
    for (int64_t i = 0; i < size; ++i)
        block.values[at + i] = decoder.projected[(value * size + i) * decoder.rows + row];
}

// The heads of one row that share a key and value head.
static void attend(
    const Decoder& decoder, const Block& block, int64_t group, int64_t row, const Place& place,
    float* scratch) {
    const int64_t size = decoder.head_dim, shared = decoder.heads / decoder.key_value_heads;
    const int64_t begin = place.begin, slot = place.slot;
    const float* keys = block.keys + cached(decoder, place, group);
    const float* values = block.values + cached(decoder, place, group);
    float *query = scratch + size, *out = query + size, *scores = out + size;
    for (int64_t head = group * shared; head < (group + 1) * shared; ++head) {
        turn(decoder, block.query_norm, head, row, slot - begin, query, scratch);
        const float* bias =
            decoder.score_bias ? decoder.score_bias + (head + 1) * decoder.room - slot - 1 : nullptr;
        float highest = -INFINITY, total = 0;
        for (int64_t at = begin; at <= slot; ++at) {
            float score = 0;
#pragma omp simd reduction(+ : score)
            for (int64_t i = 0; i < size; ++i) score += query[i] * keys[at * size + i];
            scores[at] = score * static_cast<float>(decoder.scaling) + (bias ? bias[at] : 0);
            highest = std::max(highest, scores[at]);
        }
        std::memset(out, 0, size * sizeof(float));
        for (int64_t at = begin; at <= slot; ++at) {
            const float weight = std::exp(scores[at] - highest);
            total += weight;
            for (int64_t i = 0; i < size; ++i) out[i] += weight * values[at * size + i];
        }
        for (int64_t i = 0; i < size; ++i)
            decoder.attended[(head * size + i) * decoder.rows + row] = out[i] / total;
    }
}

static void add(
    const Decoder& decoder, const Matrix& matrix, int64_t group, const float* states,
    const float* residual) {
    float sums[OUTPUTS_AT_ONCE * MOST_ROWS];
    const int64_t count = multiply(matrix, group, states, decoder.rows, sums);
    const int64_t begin = group * OUTPUTS_AT_ONCE * decoder.rows;
    for (int64_t i = 0; i < count * decoder.rows; ++i)
        decoder.hidden[begin + i] = residual[begin + i] + sums[i];
}

static void feed(const Decoder& decoder, const Block& block, int64_t group, const float* states) {
    float gates[OUTPUTS_AT_ONCE * MOST_ROWS];
    float* out = decoder.widened + group * OUTPUTS_AT_ONCE * decoder.rows;
    const int64_t count = multiply(block.widen, group, states, decoder.rows, out);
    if (block.gate.outputs) {
        multiply(block.gate, group, states, decoder.rows, gates);
        for (int64_t i = 0; i < count * decoder.rows; ++i)
            out[i] *= activate(decoder.activation, gates[i]);
    } else {
        for (int64_t i = 0; i < count * decoder.rows; ++i)
            out[i] = activate(decoder.activation, out[i]);
    }
}

static void embed(const Decoder& decoder, const int64_t* tokens, int64_t slot, int64_t row) {
    const int64_t size = decoder.hidden_size;
    const Place place = find(decoder, row, slot);
    const int64_t position = place.slot - place.begin;
    for (int64_t i = 0; i < size; ++i) {
        float& hidden = decoder.hidden[i * decoder.rows + row];
        hidden = decoder.embeddings[tokens[row] * size + i];
        if (decoder.positions) hidden += decoder.positions[position * size + i];
    }
}

// What follows is called by every thread; `omp for` shares a loop out among them.

static float* project(const Decoder& decoder, const Matrix& matrix, const float* states, float* out) {
#pragma omp for nowait
    for (int64_t group = 0; group < groups(matrix); ++group)
        multiply(
            matrix, group, states, decoder.rows, out + group * OUTPUTS_AT_ONCE * decoder.rows);
    return out + matrix.outputs * decoder.rows;
}

static void run_block(const Decoder& decoder, const Block& block, int64_t slot, float* own) {
    const int64_t size = decoder.hidden_size, rows = decoder.rows;
    // Post-LN: `own` holds the normalized stream already, which is the residual too.
    const float* residual = decoder.is_pre_norm ? decoder.hidden : own;
    if (decoder.is_pre_norm) normalize(block.attention_norm, decoder.hidden, size, rows, own);
    float* rest = project(decoder, block.query, own, decoder.projected);
    rest = project(decoder, block.key, own, rest);
    project(decoder, block.value, own, rest);
#pragma omp barrier
    const int64_t batch = decoder.batch;
#pragma omp for
    for (int64_t item = 0; item < decoder.key_value_heads * batch; ++item)
        remember(
            decoder, block, item / batch, item % batch, find(decoder, item % batch, slot),
            own + size * rows);
#pragma omp for
    for (int64_t item = 0; item < decoder.key_value_heads * batch; ++item)
        attend(
            decoder, block, item / batch, item % batch, find(decoder, item % batch, slot),
            own + size * rows);
#pragma omp for
    for (int64_t group = 0; group < groups(block.mix); ++group)
        add(decoder, block.mix, group, decoder.attended, residual);

    const Norm& norm = decoder.is_pre_norm ? block.mlp_norm : block.attention_norm;
    normalize(norm, decoder.hidden, size, rows, own);
#pragma omp for
    for (int64_t group = 0; group < groups(block.widen); ++group) feed(decoder, block, group, own);
#pragma omp for
    for (int64_t group = 0; group < groups(block.narrow); ++group)
        add(decoder, block.narrow, group, decoder.widened, residual);
    if (!decoder.is_pre_norm) normalize(block.mlp_norm, decoder.hidden, size, rows, own);
}

static void run(const Decoder& decoder, const int64_t* tokens, int64_t slot, float* own) {
    const int64_t size = decoder.hidden_size, rows = decoder.rows;
#pragma omp for
    for (int64_t row = 0; row < decoder.batch; ++row) embed(decoder, tokens, slot, row);
    if (!decoder.is_pre_norm) std::memcpy(own, decoder.hidden, size * rows * sizeof(float));
    for (int64_t block = 0; block < decoder.num_blocks; ++block)
        run_block(decoder, decoder.blocks[block], slot, own);
    normalize(decoder.norm, decoder.is_pre_norm ? decoder.hidden : own, size, rows, own);
    project(decoder, decoder.head, own, decoder.logits);
}

extern "C" int64_t decoder_lanes() { return LANES; }

extern "C" void decoder_step(const Decoder* decoder, const int64_t* tokens, int64_t slot) {
#pragma omp parallel num_threads(decoder->threads)
    run(*decoder, tokens, slot, decoder->own + omp_get_thread_num() * decoder->own_size);
}
