"""Run `test_earlier_faults.py` with the code of another checkout: `python -m tests.gpu.on_checkout FOLDER`.

FOLDER is a checkout of an earlier commit with its environment in `.venv`; nothing is written there. Prints a table of
FAIL (an assertion did not hold), ERROR (anything else) and PASS. Exit code 0: every test fails, as at commit e1be6a7.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

FILES = tuple(Path(__file__).with_name(name) for name in ("test_earlier_faults.py", "run_of_a_gpu_job.py"))


def results(checkout: Path, python: Path, files: Sequence[Path] = FILES) -> dict[str, str]:
    """Return "FAIL", "ERROR", "PASS" or "SKIP" for each test name.

    Raises:
        RuntimeError: pytest failed before running the tests; the message has its output.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, report = Path(name) / "tests", Path(name) / "report.xml"
        folder.mkdir()
        for file in files:
            shutil.copy(file, folder)
        options = ("-p", "no:cacheprovider", "-c", "/dev/null", f"--rootdir={folder}", "--import-mode=importlib")
        command = [str(python), "-m", "pytest", *options, f"--junitxml={report}", str(folder)]
        environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
        ran = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
        if not report.exists():
            raise RuntimeError(ran.stdout + ran.stderr)
        cases = ElementTree.parse(report).getroot().iter("testcase")
        return {case.get("name", ""): _result(case) for case in cases}


def _result(case: ElementTree.Element) -> str:
    failure = case.find("failure")
    if failure is not None:
        return "FAIL" if failure.get("message", "").startswith(("assert", "AssertionError")) else "ERROR"
    if case.find("error") is not None:
        return "ERROR"
    return "PASS" if case.find("skipped") is None else "SKIP"


def main(folder: str) -> int:
    """Print the table of test results for a checkout."""
    checkout = Path(folder).resolve()
    found = results(checkout, checkout / ".venv" / "bin" / "python")
    for name, result in found.items():
        print(f"{result:5}  {name}")
    return 0 if found and set(found.values()) == {"FAIL"} else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
