"""One notebook through papermill: by the interpreter that runs us, into a file that appears only when it is whole."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import papermill
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from dmsmil.jobs.files import ROOT, atomic, one_line
from dmsmil.study.params import notebook_parameters
from dmsmil.study.terminal import Lines

START_SECONDS = 600  # a busy machine, or a network disk, takes minutes to import what a kernel needs
OURS = (
    "InputError",
    "DiskFull",
    "ServerAway",
    "TokenRefused",
)  # errors whose message says all; of others the class is named too


class OwnKernel(AsyncKernelManager):
    """A kernel of the interpreter that runs `dmsmil`, whatever Jupyter calls python3 on this machine."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """The kernel in Jupyter's words."""
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")


def execute(notebook: Path, folder: Path, params: dict, say: Callable[[str], None]) -> str:
    """Execute a notebook of the study with its share of `params`, into `folder`; what its cells print goes to `say`.

    Returns what went wrong in one line, or nothing. A notebook that stopped lies there as <name>.failed.ipynb until it
    succeeds. Raises DiskFull when it cannot be saved.
    """
    failed = folder / f"{notebook.stem}.failed.ipynb"
    try:
        with atomic(folder / notebook.name) as working:
            try:
                _papermill(notebook, working, params, say)
            except (PapermillExecutionError, DeadKernelError):
                os.replace(working, failed)
                raise
    except RuntimeError as error:  # jupyter_client's, where the kernel does not even start
        if not isinstance(error, DeadKernelError):
            return f"its process did not start ({one_line(error)[:120]}): start the same command again"
        return "its process died (killed by the system, or out of memory): try again with workers: 1"
    except PapermillExecutionError as error:
        text = " ".join(str(error.evalue).split())
        return text if error.ename in OURS else f"{error.ename}: {text}"
    failed.unlink(missing_ok=True)
    return ""


def _papermill(notebook: Path, working: Path, params: dict, say: Callable[[str], None]) -> None:
    own = {name: params[name] for name in notebook_parameters(notebook)}
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, working)]  # it fills in {names}
    logging.getLogger("papermill").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the temporary file is not called .ipynb
        # every file is whole when the last cell ends: a kernel that has PyTorch takes 2 s more to say goodbye
        papermill.execute_notebook(
            *paths,
            own,
            cwd=ROOT,
            progress_bar=False,
            kernel_name="python3",
            kernel_manager_class=OwnKernel,
            start_timeout=START_SECONDS,
            stdout_file=Lines(say),
            shutdown_kernel="immediate",
            extra_arguments=["--log-level=CRITICAL"],
        )
