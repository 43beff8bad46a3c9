"""Completion for bash: `source <(lowrt completion)`. The script is made from the very tables that the command line is read by."""

from lowrt import flags

_SCRIPT = """\
# bash completion of lowrt
_lowrt() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command= root=() i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
        --root) root=(--root "${{COMP_WORDS[++i]}}") ;;
        {global_with_value}) ((i++)) ;;
        -*) ;;
        *) command=${{COMP_WORDS[i]}}; break ;;
        esac
    done
    case $before in
    {paths})
        compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    --format) mapfile -t COMPREPLY < <(compgen -W "table json" -- "$word"); return ;;
    --log-format) mapfile -t COMPREPLY < <(compgen -W "text json" -- "$word"); return ;;
    --rootless) [ -z "$command" ] && {{ mapfile -t COMPREPLY < <(compgen -W "true false auto" -- "$word"); return; }} ;;
    esac
    local words
    case $command in
    "") words="{commands} {global_flags}" ;;
{cases}
    esac
    case $command,$word in
    ,* | *,-* | {without_id}) ;;
    *) words=$(lowrt "${{root[@]}}" list --quiet 2>/dev/null) ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}}
complete -F _lowrt lowrt
"""
_PATHS = ("bundle", "console-socket", "log", "pid-file", "pidfd-socket", "process", "resources", "root")
_WITHOUT_ID = ("completion", "create", "features", "list", "run", "spec")


def script() -> str:
    """The completion script."""
    return _SCRIPT.format(
        global_with_value=" | ".join(f"--{name}" for name, kind in flags.GLOBAL.items() if kind and name != "root"),
        paths=" | ".join(f"--{name}" for name in _PATHS),
        commands=" ".join(flags.COMMANDS),
        global_flags=_words(flags.GLOBAL),
        cases="\n".join(f'    {name}) words="{_words({**kinds, "help": ""})}" ;;' for name, kinds in flags.COMMANDS.items()),
        without_id=" | ".join(f"{name},*" for name in _WITHOUT_ID),
    )


def _words(kinds: "dict[str, str]") -> str:
    return " ".join(f"--{name}" for name in kinds)
