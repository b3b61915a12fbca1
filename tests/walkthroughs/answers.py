"""The hidden answers of a walkthrough print what stands below them."""

import contextlib
import io
import re


def check_answers(text, names):
    """Execute the code of each answer in `names` and compare what it prints with its text block."""
    answers = re.findall(r"<details>(.*?)</details>", text, re.S)
    assert answers
    for answer in answers:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec("\n".join(re.findall(r"```python\n(.*?)```", answer, re.S)), names)
        assert printed.getvalue().strip() == re.search(r"```text\n(.*?)\n```", answer, re.S)[1]
