"""`python -m tests.parity FOLDER`: check all vector files of a folder, with one line per file; needs no pytest."""

import argparse
import importlib
import pkgutil
import sys
import traceback
from pathlib import Path

import tests.parity as package
from tests.parity.harness import INFORMATION, Mode, Report, Subject, VectorError

KERNELS = ("auto", "off", "require", "emulated-cuda")
_NO_SUBJECT = ("harness", "__main__")


def subjects() -> dict[str, Subject]:
    """Return the `SUBJECT` of every module in this package by the module's name."""
    names = [item.name for item in pkgutil.iter_modules(package.__path__)]
    modules = {
        name: importlib.import_module(f"{package.__name__}.{name}")
        for name in sorted(names)
        if name not in _NO_SUBJECT and not name.startswith("test_")
    }
    return {name: module.SUBJECT for name, module in modules.items() if hasattr(module, "SUBJECT")}


def _line(path: Path, mode: Mode, report: Report) -> str:
    worst_abs = max((row.worst_abs for row in report.comparisons), default=float("nan"))
    worst_rel = max((row.worst_rel for row in report.comparisons), default=float("nan"))
    tolerances = list(dict.fromkeys(row.tolerance for row in report.comparisons))
    shown = "; ".join(tolerances[:3]) + (f"; +{len(tolerances) - 3} more" if len(tolerances) > 3 else "")
    verdict = "ok" if report.ok else "FAIL"
    return f"{path.name:32} {mode:6} abs {worst_abs:9.2e}  rel {worst_rel:9.2e}  {verdict:4}  [{shown}]"


def _check(subject: Subject, path: Path, mode: Mode, *, debug: bool) -> Report:
    report = Report()
    try:
        subject.check(path, report, mode)
    except Exception as error:
        if debug:
            traceback.print_exc()
        kind = "" if isinstance(error, VectorError) else f"{type(error).__name__}: "
        print(f"{path.name:32} {mode:6} FAIL  {kind}{' '.join(str(error).split())[:200]}", flush=True)
        return Report()
    print(_line(path, mode, report), flush=True)
    for row in report.failures():
        print(f"    {row.name}: abs {row.worst_abs:.3e} rel {row.worst_rel:.3e} ({row.tolerance})", flush=True)
    for reason in report.forgiven:
        print(f"    forgiven: {reason}", flush=True)
    skipped = report.not_compared(INFORMATION + subject.information)
    if skipped:
        more = f" and {len(skipped) - 4} more" if len(skipped) > 4 else ""
        print(f"    not compared: {', '.join(skipped[:4])}{more}", flush=True)
    return report


def _unknown(known: list[Subject], folder: Path) -> list[Path]:
    """Return the vector files that no subject reads."""
    read = {path for subject in known for path in subject.files(folder)}
    companions = {path for subject in known for pattern in subject.companions for path in folder.glob(pattern)}
    return sorted(set(folder.glob("*.npz")) - read - companions)


def _load_kernels(mode: str) -> None:
    """Load the plugin, or its test build with CUDA kernels emulated on the CPU.

    Raises:
        ValueError: it cannot be loaded.
    """
    from kernels.plugin import load_plugin

    try:
        load_plugin(mode)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"--kernels {mode}: not built: {error}") from error


def main() -> int:
    """Compare; return 1 if anything is out of tolerance, 2 if nothing can be checked or kernels are missing."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder with .npz vector files")
    parser.add_argument("--kernels", choices=KERNELS, default="auto", help="kernel plugin")
    parser.add_argument("--mode", choices=("eager", "graph", "both"), default="both", help="how ours is executed")
    parser.add_argument("--only", default="", help="only files whose name contains this")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args()
    try:
        _load_kernels(options.kernels)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    known = list(subjects().values())
    reports = [
        _check(subject, path, mode, debug=options.debug)
        for subject in known
        for path in subject.files(options.folder)
        if options.only in path.name
        for mode in subject.modes
        if options.mode in (mode, "both")
    ]
    for path in _unknown(known, options.folder):
        if options.only in path.name:
            print(f"{path.name:32} {'':6} FAIL  no check is known for a file of this name", flush=True)
            reports.append(Report())
    if not reports:
        print(f"{options.folder}: no vector files", file=sys.stderr)
        return 2
    passed = sum(report.ok for report in reports)
    forgiven = sum(bool(report.forgiven) for report in reports)
    print(f"{len(reports)} cases: {passed} passed, {len(reports) - passed} failed, {forgiven} forgiven")
    return 0 if passed == len(reports) else 1


if __name__ == "__main__":
    sys.exit(main())
