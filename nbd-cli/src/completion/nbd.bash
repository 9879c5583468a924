# Completion of nbd's command lines for bash 4 or newer; made by: nbd completion bash

_nbd() {
    # Bash splits words at the colons and equals signs of URIs: the pieces that no space separates belong together.
    local words=() line=$COMP_LINE piece skipped i
    for ((i = 0; i <= COMP_CWORD; i++)); do
        piece=${COMP_WORDS[i]}
        skipped=${line%%"$piece"*}
        line=${line#"$skipped$piece"}
        # The part of the word in front of the cursor, unless it is one of those signs.
        if ((i == COMP_CWORD)) && [[ $piece != [:=]* ]]; then piece=$2; fi
        if ((i == 0)) || [[ -n $skipped ]] || [[ -z $piece && ${COMP_WORDS[i - 1]} != [:=]* ]]; then
            words+=("$piece")
        else
            words[-1]+=$piece
        fi
    done
    local quoted=false
    case ${COMP_WORDS[COMP_CWORD]} in \'* | \"*) quoted=true ;; esac
    # What bash takes for the beginning of the word stays as it is on the line.
    local word=${words[-1]} kept=
    case $COMP_WORDBREAKS in *[:=]*) $quoted || kept=${word%"${word##*[:=]}"} ;; esac

    local line value
    COMPREPLY=()
    while IFS= read -r line; do
        value=${line%%$'\t'*}
        # A value that something can follow gets no space behind it.
        case $value in *[/:=]) compopt -o nospace ;; esac
        value=${value#"$kept"}
        [[ -z $value ]] || $quoted || printf -v value %q "$value"
        COMPREPLY+=("$value")
    done < <("$1" completion --words -- "${words[@]}" 2>/dev/null)
}

complete -o nosort -F _nbd nbd
