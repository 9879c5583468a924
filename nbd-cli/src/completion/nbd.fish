# Completion of nbd's command lines for fish; made by: nbd completion fish

function __nbd_complete
    set --local words (commandline --current-process --tokenize --cut-at-cursor)
    set --local current (commandline --current-token --cut-at-cursor)
    # What a shell would take away, such as quotes, is not part of the word.
    command $words[1] completion --words -- $words "$(string unescape -- $current)" 2>/dev/null
end

complete --command nbd --no-files --keep-order --arguments '(__nbd_complete)'
