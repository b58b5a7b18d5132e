complete -c ringway-wg -l suite -d 'The protocol to speak with peers: auto tries ringway\'s own first, then WireGuard\'s' -r
complete -c ringway-wg -l workers -d 'How many workers to run: auto is one per core' -r
complete -c ringway-wg -l io -d 'How to talk to the kernel: auto prefers io_uring' -r
complete -c ringway-wg -l crypto -d 'Which encryption code to use: auto takes the fastest that passes its self-test' -r
complete -c ringway-wg -s f -l foreground -d 'Stay in the foreground'
complete -c ringway-wg -s h -l help -d 'Print help (see more with \'--help\')'
complete -c ringway-wg -s V -l version -d 'Print version'
