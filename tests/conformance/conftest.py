"""What pytest leaves alone here: files for the package of common tests, which runs by itself."""

collect_ignore = ["standins", "subjects.py"]
