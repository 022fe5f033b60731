"""The page, served by the command and used by gradio's own client.

Both run as programs of their own: gradio leaves sockets and event loops to the collector, of which
the tests' own process would complain.
"""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

pytest.importorskip("gradio", reason="needs pip install 'hf-tinyformer[demo]'")

pytestmark = pytest.mark.slow

CLIENT = """
import json, sys
from gradio_client import Client
client = Client(sys.argv[1], verbose=False)
job = client.submit("def add", 6, 0.0, 0, api_name="/write")
last = job.result(timeout=60)
table = client.predict(2, 0, api_name="/look")
print(json.dumps({"steps": job.outputs(), "last": last, "table": table}))
"""


def start(checkpoint, port):
    return subprocess.Popen(
        [sys.executable, "-m", "hf_tinyformer", "demo", str(checkpoint), "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # A shell starts what runs in its background with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture(scope="module")
def address(checkpoint):
    server = start(checkpoint, 0)
    line = server.stdout.readline()
    found = re.search(r"is at (http://127\.0\.0\.1:\d+/)\. Ctrl-C ends it", line)
    assert found, line + server.stderr.read()
    yield found[1]
    server.send_signal(signal.SIGINT)
    server.communicate(timeout=60)
    assert server.returncode == 0


def test_tokens_stream_and_attention_is_drawn(address):
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, address], capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # The client gets each thing that the page showed, one after another.
    shown = [len(re.findall("<span", step)) for step in found["steps"]]
    num_prompt_tokens = shown[0]
    assert shown == list(range(num_prompt_tokens, num_prompt_tokens + 7))
    assert "def add" in re.sub("<.*?>", "", found["last"])
    assert found["table"].count("<tr>") == num_prompt_tokens + 6 + 1


def test_the_page_asks_nothing_of_other_machines(address):
    with urllib.request.urlopen(address) as answer:
        page = answer.read().decode()

    loaded = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"(https?://[^\"]+)", page)
    assert [url for url in loaded if not url.startswith(address)] == []
    assert "fonts.googleapis" not in page
    assert '"analytics_enabled":false' in page.replace(" ", "")


def test_a_port_that_is_taken_is_one_line(address, checkpoint):
    port = re.search(r":(\d+)", address)[1]
    second = start(checkpoint, port)

    _, complaint = second.communicate(timeout=120)

    assert second.returncode == 2
    assert f"--port is {port}, but nothing can listen there" in complaint.splitlines()[-1]
