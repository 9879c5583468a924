#compdef nbd
# Completion of nbd's command lines for zsh; made by: nbd completion zsh

_nbd() {
    local line value
    local -a open openshown closed closedshown
    for line in "${(@f)$("${words[1]}" completion --words -- "${(@Q)words[1,CURRENT]}" 2>/dev/null)}"; do
        [[ -n $line ]] || continue
        value=${line%%$'\t'*}
        # A value that something can follow gets no space behind it.
        if [[ $value == *[/:=] ]]; then
            open+=("$value") openshown+=("${line/$'\t'/  -- }")
        else
            closed+=("$value") closedshown+=("${line/$'\t'/  -- }")
        fi
    done
    (( $#closed )) && compadd -V nbd -l -d closedshown -a closed
    (( $#open )) && compadd -V nbd-open -l -S '' -d openshown -a open
    (( $#closed + $#open ))
}

# As a file of fpath it is called at once; sourced, it registers itself.
if [[ $funcstack[1] == _nbd ]]; then
    _nbd "$@"
else
    compdef _nbd nbd
fi
