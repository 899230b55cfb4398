"""Build .venv with nothing but a Python, its pip and the hashes in this folder.

    python -m venv ──fails──▶ pip install --target .venv-bootstrap virtualenv ──▶ python -m virtualenv

Debian ships Python without `ensurepip`, and its pip refuses to install for the whole
system; a folder of our own needs neither. Standard library only, and it must still be
read by an old Python, so that the message about its age is seen.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
VENV_PYTHON = os.path.join(VENV, "bin", "python")
BOOTSTRAP = os.path.join(ROOT, ".venv-bootstrap")
OLDEST = (3, 11)


class StepFailed(Exception):
    """A program of the set-up did not do its work; carries what it said."""


def main() -> int:
    """Leave a complete .venv behind, or say what is missing."""
    if sys.version_info[:2] < OLDEST:
        print("aimport needs Python %d.%d or newer; %s is %s" % (*OLDEST, sys.executable, sys.version.split()[0]))  # noqa: UP031
        return 1
    try:
        if not venv_answers():
            print("making .venv with", sys.executable, flush=True)
            make_venv()
        install()
    except StepFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


def venv_answers() -> bool:
    """Whether .venv has a Python that is new enough, and its pip: a half-made one is made again."""
    probe = "import sys, pip; sys.exit(sys.version_info[:2] < %r)" % (OLDEST,)  # noqa: UP031
    try:
        return subprocess.run([VENV_PYTHON, "-c", probe], capture_output=True, env=environment()).returncode == 0
    except OSError:
        return False


def make_venv() -> None:
    """Make an empty .venv that has a pip."""
    clear_venv()
    try:
        run([sys.executable, "-m", "venv", VENV])
        if venv_answers():
            return
        reason = "no pip in what `venv` made"
    except StepFailed as failure:
        reason = str(failure)
    clear_venv()
    shutil.rmtree(BOOTSTRAP, ignore_errors=True)
    requirements = os.path.join(ROOT, "tests", "bootstrap-requirements.txt")
    refusals = []
    for pip in pips():
        try:
            run([*pip, "install", "--quiet", "--require-hashes", "--target", BOOTSTRAP, "-r", requirements])
            break
        except StepFailed as failure:
            refusals.append(str(failure))
    else:
        raise StepFailed(
            "\n".join([reason, *(refusals or ["no pip found"]), "neither `venv` nor pip could make .venv"])
        )
    run([sys.executable, "-m", "virtualenv", "--quiet", "--no-periodic-update", VENV], PYTHONPATH=BOOTSTRAP)
    shutil.rmtree(BOOTSTRAP, ignore_errors=True)
    if not venv_answers():
        raise StepFailed("virtualenv made a .venv that does not run")


def pips() -> list[list[str]]:
    """The pips of this machine; what they fetch for the set-up is pure Python, so any may serve."""
    commands = [[sys.executable, "-m", "pip"]]
    commands += [[path] for path in (shutil.which("pip3"), shutil.which("pip")) if path]
    return commands


def clear_venv() -> None:
    """Remove what is not a working environment, but keep the unpacked servers."""
    if os.path.islink(VENV):
        os.unlink(VENV)
    if os.path.isdir(VENV):
        for name in os.listdir(VENV):
            path = os.path.join(VENV, name)
            if name == "servers":
                continue
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)


def install() -> None:
    """Bring .venv to what the hashed list says, and put the project itself in, editable."""
    pip = [VENV_PYTHON, "-m", "pip", "install", "--quiet"]
    run([*pip, "--require-hashes", "-r", os.path.join(ROOT, "tests", "requirements.txt")])
    run([*pip, "--no-deps", "--no-build-isolation", "--editable", ROOT])


def environment(**more: str) -> dict[str, str]:
    """The machine's own settings of pip hold (index, proxy, certificates), those of its placement do not."""
    env = {name: value for name, value in os.environ.items() if name not in {"PYTHONHOME", "PYTHONPATH", "PIP_TARGET"}}
    env.update(PIP_USER="0", PIP_REQUIRE_VIRTUALENV="0", PIP_DISABLE_PIP_VERSION_CHECK="1")
    env.update(PIP_ROOT_USER_ACTION="ignore", **more)
    return env


def run(command: list[str], **more: str) -> None:
    """Run one program; it is heard only when it fails."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except OSError as error:
        raise StepFailed("$ %s\n%s" % (" ".join(command), error)) from error  # noqa: UP031
    if done.returncode != 0:
        raise StepFailed("$ %s\n%s" % (" ".join(command), done.stdout.strip()))  # noqa: UP031


if __name__ == "__main__":
    sys.exit(main())
