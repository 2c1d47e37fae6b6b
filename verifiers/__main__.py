"""python -m verifiers grade | golds | check | new | list | tool: verifiers and tools without any model.

Exit codes: 0 done; 2 a mistake in the input (one line on stderr), a gold that no answer can meet, or a verifier or tool
that does not pass the kit.
"""

from __future__ import annotations

import argparse
import os
import sys

import verifiers


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m verifiers", description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = top.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--dir", action="append", default=[], metavar="D", help="a directory with your own verifiers")

    grade = commands.add_parser("grade", parents=[shared], help="grade a JSONL file of completions")
    grade.add_argument("name")
    grade.add_argument("--input", required=True, help='rows {"completion": ..., "task": {...}}; - for stdin')
    grade.add_argument("--output", required=True, help='rows {"status", "score", "detail"}; - for stdout')
    grade.add_argument("--threads", type=int, default=min(8, 2 * (os.cpu_count() or 1)))
    grade.add_argument("--timeout-s", type=float, default=60.0, help="per row; a late row is an error, not a zero")

    golds = commands.add_parser("golds", parents=[shared], help="list the rows of a JSONL file that no answer can pass")
    golds.add_argument("file", metavar="FILE", help='rows {"gold": ...} or {"task": {"gold": ...}}; - for stdin')
    golds.add_argument("--field", action="append", default=[], metavar="FIELD=COLUMN", help="as in: gold=answer")
    golds.add_argument("--all", action="store_true", help="list every such row, not the first 50 only")
    golds.add_argument("name", nargs="?", default="math_answer", metavar="NAME", help="default: math_answer")

    check = commands.add_parser("check", parents=[shared], help="check verifiers with the conformance kit")
    check.add_argument("names", nargs="*", metavar="NAME")

    new = commands.add_parser("new", help="write a new verifier that passes the kit as written")
    new.add_argument("name")
    new.add_argument("--dir", default="my_verifiers", metavar="D")

    tool = commands.add_parser("tool", help="tools for agents: new NAME, check [NAME ...], list")
    tool.add_argument("action", choices=("new", "check", "list"))
    tool.add_argument("names", nargs="*", metavar="NAME")
    tool.add_argument("--dir", action="append", default=[], metavar="D", help="a directory with your own tools")

    commands.add_parser("list", parents=[shared], help="the verifiers and their task fields")
    return top


def run(args: argparse.Namespace) -> int:
    if args.command == "grade":
        from verifiers.grade import grade_file

        if args.threads < 1 or not args.timeout_s > 0:
            raise ValueError(f"--threads {args.threads} and --timeout-s {args.timeout_s} must be positive")
        verifier = verifiers.load(args.name, args.dir)
        grade_file(verifier, args.input, args.output, threads=args.threads, timeout_s=args.timeout_s)
        return 0
    if args.command == "golds":
        from verifiers.golds import SHOWN, check_file

        columns = dict(pair.split("=", 1) if "=" in pair else (pair, "") for pair in args.field)
        if wrong := [field for field, column in columns.items() if not (field and column)]:
            raise ValueError(f"--field {wrong[0]}: write FIELD=COLUMN, as in --field gold=answer")
        shown = sys.maxsize if args.all else SHOWN
        return 2 if check_file(verifiers.load(args.name, args.dir), args.file, columns=columns, shown=shown) else 0
    if args.command == "check":
        from verifiers.kit import check_all

        return check_all(args.names or sorted(verifiers.available(args.dir)), args.dir)
    if args.command == "new":
        from verifiers._scaffold import write

        path = write(args.name, args.dir)
        print(f"{path}: passes `python -m verifiers check {args.name} --dir {args.dir}`; make it yours")
        return 0
    if args.command == "tool":
        return run_tool(args.action, args.names, args.dir)
    for name in sorted(verifiers.available(args.dir)):
        verifier = verifiers.load(name, args.dir)
        optional = sorted(verifier.fields - verifier.required_fields)
        fields = ", ".join([*sorted(verifier.required_fields), *(f"[{field}]" for field in optional)])
        print(f"{name}: {(verifier.module.__doc__ or '').strip().splitlines()[0]}\n    {fields}")
    return 0


def run_tool(action: str, names: list[str], dirs: list[str]) -> int:
    from verifiers import tools

    if action == "new":
        from verifiers.tools._new_tool import write

        if len(names) != 1:
            raise ValueError("tool new: give one name, as in: python -m verifiers tool new unit_price")
        directory = dirs[0] if dirs else "my_tools"
        path = write(names[0], directory)
        print(f"{path}: passes `python -m verifiers tool check {names[0]} --dir {directory}`; make it yours")
        return 0
    if action == "check":
        from verifiers.tools._conformance import check_all

        return check_all(names or sorted(tools.available(dirs)), dirs)
    for name in names or sorted(tools.available(dirs)):
        print(f"{name}: {((tools.load(name, dirs).module.__doc__ or '').strip() or '?').splitlines()[0]}")
    return 0


def main() -> int:
    try:
        return run(parser().parse_args())
    except ValueError as exc:
        print(f"verifiers: {exc}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our stdout closed it
        sys.stderr.close()
        return 0


if __name__ == "__main__":
    sys.exit(main())
