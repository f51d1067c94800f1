"""Shell completion: scripts for bash, zsh and fish, made from the parser."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bnmonitor.arguments import Kind, kind

_RULE = re.compile(r'^    (code|name): ClassVar\[str\] = "([\w-]+)"$', re.M)


@dataclass(frozen=True, kw_only=True)
class _Argument:
    """What a shell has to know of an option or of a position."""

    flags: tuple[str, ...]
    about: str
    takes: str
    words: tuple[str, ...]
    kind: Kind | None


@dataclass(frozen=True, kw_only=True)
class _Command:
    name: str
    about: str
    options: tuple[_Argument, ...]
    positions: tuple[_Argument, ...]


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """Return a script that makes a shell complete the command line.

    Args:
        shell: "bash", "zsh" or "fish".
        parser: The command line's parser, whose commands are sub-parsers.
    """
    main, commands = _read(parser)
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](main, commands, rules())


def rules() -> dict[str, str]:
    """Code and name of every rule, read from the files that declare them: importing these would import torch."""
    found = {}
    for path in (Path(__file__).parent / "rules").glob("*/*.py"):
        declared = dict(_RULE.findall(path.read_text(encoding="utf-8")))
        if "code" in declared:
            found[declared["code"]] = declared["name"]
    return dict(sorted(found.items()))


def _read(parser: argparse.ArgumentParser) -> tuple[_Command, list[_Command]]:
    commands = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {each.dest: each.help or "" for each in action._choices_actions}
            commands = [_command(name, helps[name], below) for name, below in action.choices.items()]
    return _command(parser.prog, "", parser), commands


def _command(name: str, about: str, parser: argparse.ArgumentParser) -> _Command:
    found = [
        _Argument(
            flags=tuple(action.option_strings),
            about=(action.help or "").replace("%(default)s", str(action.default)),
            takes="" if action.nargs == 0 else str(action.metavar or action.dest).lower(),
            words=tuple(map(str, action.choices or ())),
            kind=kind(action),
        )
        for action in parser._actions
        if not isinstance(action, argparse._SubParsersAction)
    ]
    return _Command(
        name=name,
        about=about,
        options=tuple(each for each in found if each.flags),
        positions=tuple(each for each in found if not each.flags),
    )


# -- bash --------------------------------------------------------------------------------------------------------------


def _bash(main: _Command, commands: Sequence[_Command], rules: dict[str, str]) -> str:
    names = " ".join(command.name for command in commands)
    lines = [
        "# bnmonitor in bash; bash 3.2, as on macOS, will do",
        "_bnmonitor() {",
        "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command= words= i",
        "    # --option=value is three words here",
        "    [[ $cur == = ]] && cur=",
        "    [[ $prev == = ]] && prev=${COMP_WORDS[COMP_CWORD-2]}",
        "    for ((i = 1; i < COMP_CWORD; i++)); do",
        f"        case ${{COMP_WORDS[i]}} in {names.replace(' ', '|')}) command=${{COMP_WORDS[i]}}; break ;; esac",
        "    done",
        "    case $command/$prev in",
    ]
    for command in commands:
        for option in command.options:
            if option.takes:
                asked = "|".join(f"{command.name}/{flag}" for flag in option.flags)
                lines.append(f"        {asked}) {_bash_values(option, rules)} ;;")
    lines += ["        *) case $command/$cur in", f'            /*) words="{names} {_flags(main)}" ;;']
    for command in commands:
        lines.append(f'            {command.name}/-*) words="{_flags(command)}" ;;')
        for position in command.positions[:1]:
            lines.append(f"            {command.name}/*) {_bash_values(position, rules)} ;;")
    lines += [
        "        esac ;;",
        "    esac",
        "    # without it, what is no word of ours would be taken for a file",
        "    compopt +o default 2>/dev/null",
        '    COMPREPLY=($(compgen -W "$words" -- "$cur"))',
        "}",
        "complete -o default -F _bnmonitor bnmonitor",
    ]
    return "\n".join(lines) + "\n"


def _bash_values(argument: _Argument, rules: dict[str, str]) -> str:
    if argument.kind == "file":
        return "COMPREPLY=(); return"
    return f'words="{" ".join(_words(argument, rules))}"'


def _flags(command: _Command) -> str:
    return " ".join(flag for option in command.options for flag in option.flags)


def _words(argument: _Argument, rules: dict[str, str]) -> list[str]:
    return [*rules, *rules.values()] if argument.kind == "rule" else list(argument.words)


# -- zsh ---------------------------------------------------------------------------------------------------------------


def _zsh(main: _Command, commands: Sequence[_Command], rules: dict[str, str]) -> str:
    lines = [
        "#compdef bnmonitor",
        "_bnmonitor() {",
        "  local context state state_descr line",
        "  typeset -A opt_args",
        f"  _arguments -C {' '.join(_zsh_option(o, rules) for o in main.options)} '1: :->command' '*:: :->rest'",
        "  case $state in",
        "    command)",
        "      local -a commands=(",
        *(f"        {_quoted(command.name + ':' + command.about)}" for command in commands),
        "      )",
        "      _describe command commands ;;",
        "    rest)",
        "      case $words[1] in",
    ]
    for command in commands:
        takes = [_zsh_option(option, rules) for option in command.options]
        takes += [_zsh_position(position, rules) for position in command.positions]
        lines.append(f"        {command.name}) _arguments {' '.join(takes)} ;;")
    lines += [
        "      esac ;;",
        "  esac",
        "}",
        "# read by a shell, or found by it in $fpath",
        'if [[ $funcstack[1] == _bnmonitor ]]; then _bnmonitor "$@"; else compdef _bnmonitor bnmonitor; fi',
    ]
    return "\n".join(lines) + "\n"


def _zsh_option(option: _Argument, rules: dict[str, str]) -> str:
    about = f"[{_escaped(option.about, '[]:')}]"
    value = f":{_escaped(option.takes, ':')}:{_zsh_values(option, rules)}" if option.takes else ""
    if len(option.flags) == 1:
        return _quoted(option.flags[0] + about + value)
    apart = _quoted(f"({' '.join(option.flags)})")
    return f"{apart}{{{','.join(option.flags)}}}{_quoted(about + value)}"


def _zsh_position(position: _Argument, rules: dict[str, str]) -> str:
    return _quoted(f":{_escaped(position.takes, ':')}:{_zsh_values(position, rules)}")


def _zsh_values(argument: _Argument, rules: dict[str, str]) -> str:
    if argument.kind == "file":
        return "_files"
    words = _words(argument, rules)
    return f"({' '.join(words)})" if words else " "


def _escaped(text: str, signs: str) -> str:
    return re.sub(f"([{re.escape(signs)}])", r"\\\1", text)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# -- fish --------------------------------------------------------------------------------------------------------------


def _fish(main: _Command, commands: Sequence[_Command], rules: dict[str, str]) -> str:
    lines = ["# bnmonitor in fish", "complete -c bnmonitor -f"]
    lines += [f"complete -c bnmonitor -n __fish_use_subcommand {_fish_option(o, rules)}" for o in main.options]
    for command in commands:
        about = _fish_quoted(command.about)
        lines.append(f"complete -c bnmonitor -n __fish_use_subcommand -a {command.name} -d {about}")
    for command in commands:
        here = f"complete -c bnmonitor -n '__fish_seen_subcommand_from {command.name}'"
        lines += [f"{here} {_fish_option(option, rules)}" for option in command.options]
        for position in command.positions[:1]:
            if position.kind == "file":
                lines.append(f"{here} -F")
            elif position.kind == "rule":
                for code, name in rules.items():
                    lines += [f"{here} -a {code} -d {name}", f"{here} -a {name} -d {code}"]
            elif position.words:
                lines.append(f"{here} -a {_fish_quoted(' '.join(position.words))}")
    return "\n".join(lines) + "\n"


def _fish_option(option: _Argument, rules: dict[str, str]) -> str:
    parts = [f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags]
    if option.takes:
        words = _words(option, rules)
        parts.append("-r -F" if option.kind == "file" else "-x")
        parts += [f"-a {_fish_quoted(' '.join(words))}"] if words else []
    return " ".join([*parts, f"-d {_fish_quoted(option.about)}"])


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
