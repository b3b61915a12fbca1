"""The command `dmsmil`. What a verb needs is imported when it is asked for: help answers at once.

    dmsmil check params/mine.yaml     what is wrong, in seconds, before hours are spent
    dmsmil run params/mine.yaml       the whole study, into outputs/<study>/; start it again to continue
    dmsmil book params/mine.yaml      its book once more, from the notebooks as they were executed
    dmsmil methods                    the methods there are
    dmsmil bench                      how fast the fast paths are, against the plain ones
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from dmsmil.jobs.files import InputError
from dmsmil.study.params import read_params
from dmsmil.study.place import resolve


def check(params: dict, say: Callable[[str], None] = print) -> int:
    """Say what would go wrong with a study, in seconds. Returns the number of problems."""
    from dmsmil.study import preflight

    problems = 0
    for good, line in preflight.findings(params, resolve):
        problems += not good
        say(("ok       " if good else "PROBLEM  ") + line)
    say("nothing stands in the way: dmsmil run" if not problems else f"{problems} problems: mend them first")
    return problems


def main(argv: list[str] | None = None) -> int:
    """The `dmsmil` command."""
    parser = argparse.ArgumentParser("dmsmil", description="DMSMIL as a reproducible study: see README.md")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="{run,check,book,methods,bench}")
    for verb, text in (("run", "run a study; start it again to continue"), ("check", "say what would go wrong"),
                       ("book", "build the book of a study that has run")):
        sub = verbs.add_parser(verb, help=text)
        sub.add_argument("params", help="a YAML file of parameters, such as params/demo.yaml")
        sub.add_argument("-p", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"),
                         help="set one parameter, as papermill does; results go to the folder of -p outputs FOLDER")
        if verb == "run":
            sub.add_argument("--only", nargs="+", metavar="NN", help="only these notebooks, by number or name")
    sub = verbs.add_parser("methods", help="list the methods")
    sub.add_argument("--check", metavar="NAME", help="does this method keep the promises of the model contract?")
    sub = verbs.add_parser("bench", help="time the fast paths against the plain ones, interleaved")
    sub.add_argument("parts", nargs="*", help="slides, encoder, step, methods (default: all)")
    sub.add_argument("--quick", action="store_true", help="small sizes, a minute in all")
    args = parser.parse_args(argv)
    try:
        if args.verb in ("run", "check", "book"):
            params = read_params(args.params, dict(args.p))
            if args.verb == "check":
                return min(check(params), 1)
            from dmsmil.study.run import make_book, run

            return run(params, args.only) if args.verb == "run" else make_book(params)
        if args.verb == "methods":
            return check_method(args.check) if args.check else list_methods()
        from dmsmil.study import bench

        return bench.main(args.parts, args.quick)
    except InputError as error:
        print(f"dmsmil: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dmsmil: stopped; what is done is kept, start the same command again to continue", file=sys.stderr)
        return 130


def check_method(name: str) -> int:
    """Print which promises of the model contract a method keeps; 0 when it keeps them all."""
    from dmsmil.models.contract import check_contract

    table = check_contract(name)
    for promise, row in table.iterrows():
        print(("kept     " if row.kept else "BROKEN   ") + promise + (f": {row['why not']}" if not row.kept else ""))
    return int(not table.kept.all())


def list_methods() -> int:
    """Print name, scales, parameters at 2048-d with two classes, and reference of every method."""
    from dmsmil.models import METHODS, count_parameters, create

    print(f"{'name':<14}{'scales':<10}{'parameters':>12}  reference")
    for row in METHODS.values():
        scales = (10,) if row.takes == "one" else (10, 20)
        words = {"one": "one", "many": "all", "any": "one or all"}[row.takes]
        count = count_parameters(create(row.name, 2048, 2, scales))
        print(f"{row.name:<14}{words:<10}{count:>12,}  {row.title}: {row.reference}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
