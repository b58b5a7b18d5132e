# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_ringway_global_optspecs
    string join \n v/verbose log-level= h/help V/version
end

function __fish_ringway_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_ringway_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_ringway_using_subcommand
    set -l cmd (__fish_ringway_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c ringway -n "__fish_ringway_needs_command" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_needs_command" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_needs_command" -s h -l help -d 'Print help'
complete -c ringway -n "__fish_ringway_needs_command" -s V -l version -d 'Print version'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "run" -d 'Run a tunnel in the foreground until SIGINT or SIGTERM'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "up" -d 'Run a tunnel in the background'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "down" -d 'End a tunnel, and come back once all is put back as it was'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "check" -d 'Check a configuration and the key files that it names, without running it'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "convert" -d 'Write a configuration of wg-quick\'s as TOML to standard output, with the keys that are in it'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "genkey" -d 'Make a private key and write it to standard output'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "pubkey" -d 'Read a private key from standard input and write its public key to standard output'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "genpsk" -d 'Make a preshared key and write it to standard output'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "unblock" -d 'Lift the kill switch that a daemon left which was killed, or whose configuration says lockdown_keep'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "leaktest" -d 'Show whether anything leaves beside a tunnel'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "cleanup" -d 'Remove what a daemon that was killed has left: routing rules, packet filters, name servers, sockets'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "status" -d 'Show running tunnels: peers, workers, offloads, drops'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "upgrade" -d 'Have the program that is installed by now go on with a running tunnel, without a gap'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "reload" -d 'Read a running tunnel\'s configuration file again and carry out what changed in it'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "apply" -d 'Make another file what a running tunnel does'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "confirm" -d 'Keep what "ringway apply --confirm" changed'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "peer" -d 'Add, change, remove and list the peers of a running tunnel'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "set" -d 'Change a running tunnel\'s interface'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "save" -d 'Write what a running tunnel does into its configuration file'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "latency" -d 'Show how long packets take inside a running tunnel, by stage'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "stats" -d 'Show what running tunnels have counted since they started or since the last reset'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "doctor" -d 'Look for what stands in a tunnel\'s way: kernel, system, configuration, paths to the peers'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "top" -d 'Show what running tunnels do at this moment: speeds, drops, round trips, latency'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "drops" -d 'Show which packets were dropped, where, why, and what to do about it'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "capture" -d 'Capture packets inside a tunnel: a line each, or pcapng for tcpdump and Wireshark'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "explain" -d 'Tell whether a packet would pass, by which rule, to which peer and lane, and if not, why'
complete -c ringway -n "__fish_ringway_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c ringway -n "__fish_ringway_using_subcommand run" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand run" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c ringway -n "__fish_ringway_using_subcommand up" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand up" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand up" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c ringway -n "__fish_ringway_using_subcommand down" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand down" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand down" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c ringway -n "__fish_ringway_using_subcommand check" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand check" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand check" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c ringway -n "__fish_ringway_using_subcommand convert" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand convert" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand convert" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c ringway -n "__fish_ringway_using_subcommand genkey" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand genkey" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand genkey" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c ringway -n "__fish_ringway_using_subcommand pubkey" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand pubkey" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand pubkey" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c ringway -n "__fish_ringway_using_subcommand genpsk" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand genpsk" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand genpsk" -s h -l help -d 'Print help'
complete -c ringway -n "__fish_ringway_using_subcommand unblock" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand unblock" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand unblock" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c ringway -n "__fish_ringway_using_subcommand leaktest" -l seconds -d 'How long to watch' -r
complete -c ringway -n "__fish_ringway_using_subcommand leaktest" -l control-socket -d 'The daemon\'s control socket, where it is not /run/ringway/NAME.sock' -r -F
complete -c ringway -n "__fish_ringway_using_subcommand leaktest" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand leaktest" -l json -d 'Write one JSON object'
complete -c ringway -n "__fish_ringway_using_subcommand leaktest" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand leaktest" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c ringway -n "__fish_ringway_using_subcommand cleanup" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand cleanup" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand cleanup" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c ringway -n "__fish_ringway_using_subcommand status" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand status" -l json -d 'Write one JSON object per tunnel, each on a line of its own'
complete -c ringway -n "__fish_ringway_using_subcommand status" -l watch -d 'Show it again every second, until interrupted'
complete -c ringway -n "__fish_ringway_using_subcommand status" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand status" -s h -l help -d 'Print help'
complete -c ringway -n "__fish_ringway_using_subcommand upgrade" -l binary -d 'The program to go on with [default: the one that is where the running one was started from]' -r -F
complete -c ringway -n "__fish_ringway_using_subcommand upgrade" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand upgrade" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand upgrade" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c ringway -n "__fish_ringway_using_subcommand reload" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand reload" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand reload" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c ringway -n "__fish_ringway_using_subcommand apply" -l confirm -d 'Undo it after this time (60s, 5m) unless "ringway confirm" comes before' -r
complete -c ringway -n "__fish_ringway_using_subcommand apply" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand apply" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand apply" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c ringway -n "__fish_ringway_using_subcommand confirm" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand confirm" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand confirm" -s h -l help -d 'Print help'
complete -c ringway -n "__fish_ringway_using_subcommand peer; and not __fish_seen_subcommand_from add set remove list help" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand peer; and not __fish_seen_subcommand_from add set remove list help" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand peer; and not __fish_seen_subcommand_from add set remove list help" -s h -l help -d 'Print help'
complete -c ringway -n "__fish_ringway_using_subcommand peer; and not __fish_seen_subcommand_from add set remove list help" -f -a "add" -d 'Add a peer'
complete -c ringway -n "__fish_ringway_using_subcommand peer; and not __fish_seen_subcommand_from add set remove list help" -f -a "set" -d 'Change a peer: only what is given changes, and an empty text takes a setting away'
complete -c ringway -n "__fish_ringway_using_subcommand peer; and not __fish_seen_subcommand_from add set remove list help" -f -a "remove" -d 'Remove a peer'
complete -c ringway -n "__fish_ringway_using_subcommand peer; and not __fish_seen_subcommand_from add set remove list help" -f -a "list" -d 'List the peers, a line each: public key, name, endpoint, allowed IPs'
complete -c ringway -n "__fish_ringway_using_subcommand peer; and not __fish_seen_subcommand_from add set remove list help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from add" -l name -d 'What people call it' -r
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from add" -l endpoint -d 'Where it is: address or host name, and port' -r
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from add" -l allowed-ips -d 'Networks that are routed to it, separated by commas' -r
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from add" -l persistent-keepalive -d 'Seconds between keepalives; 0 for none' -r
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from add" -l preshared-key-file -d 'A file with the key that is mixed into handshakes; "" for none' -r -F
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from add" -l suite -d 'auto, native or wireguard' -r
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from add" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from add" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from add" -s h -l help -d 'Print help'
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from set" -l name -d 'What people call it' -r
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from set" -l endpoint -d 'Where it is: address or host name, and port' -r
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from set" -l allowed-ips -d 'Networks that are routed to it, separated by commas' -r
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from set" -l persistent-keepalive -d 'Seconds between keepalives; 0 for none' -r
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from set" -l preshared-key-file -d 'A file with the key that is mixed into handshakes; "" for none' -r -F
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from set" -l suite -d 'auto, native or wireguard' -r
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from set" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from set" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from set" -s h -l help -d 'Print help'
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from remove" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from remove" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from remove" -s h -l help -d 'Print help'
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from list" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from list" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from help" -f -a "add" -d 'Add a peer'
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from help" -f -a "set" -d 'Change a peer: only what is given changes, and an empty text takes a setting away'
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from help" -f -a "remove" -d 'Remove a peer'
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from help" -f -a "list" -d 'List the peers, a line each: public key, name, endpoint, allowed IPs'
complete -c ringway -n "__fish_ringway_using_subcommand peer; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c ringway -n "__fish_ringway_using_subcommand set; and not __fish_seen_subcommand_from mtu help" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand set; and not __fish_seen_subcommand_from mtu help" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand set; and not __fish_seen_subcommand_from mtu help" -s h -l help -d 'Print help'
complete -c ringway -n "__fish_ringway_using_subcommand set; and not __fish_seen_subcommand_from mtu help" -f -a "mtu" -d 'Set the MTU: "auto" (what the routes to the endpoints allow), or bytes'
complete -c ringway -n "__fish_ringway_using_subcommand set; and not __fish_seen_subcommand_from mtu help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c ringway -n "__fish_ringway_using_subcommand set; and __fish_seen_subcommand_from mtu" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand set; and __fish_seen_subcommand_from mtu" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand set; and __fish_seen_subcommand_from mtu" -s h -l help -d 'Print help'
complete -c ringway -n "__fish_ringway_using_subcommand set; and __fish_seen_subcommand_from help" -f -a "mtu" -d 'Set the MTU: "auto" (what the routes to the endpoints allow), or bytes'
complete -c ringway -n "__fish_ringway_using_subcommand set; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c ringway -n "__fish_ringway_using_subcommand save" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand save" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand save" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c ringway -n "__fish_ringway_using_subcommand latency" -l hlog -d 'Write the histograms to FILE too, as a log that HdrHistogram\'s tools read' -r -F
complete -c ringway -n "__fish_ringway_using_subcommand latency" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand latency" -l json -d 'Write one JSON object, whole histograms included'
complete -c ringway -n "__fish_ringway_using_subcommand latency" -l reset -d 'Begin a new interval afterwards'
complete -c ringway -n "__fish_ringway_using_subcommand latency" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand latency" -s h -l help -d 'Print help'
complete -c ringway -n "__fish_ringway_using_subcommand stats" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand stats" -l json -d 'Write one JSON object per tunnel, each on a line of its own'
complete -c ringway -n "__fish_ringway_using_subcommand stats" -l reset -d 'Begin a new interval afterwards; "status" and metrics go on counting'
complete -c ringway -n "__fish_ringway_using_subcommand stats" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand stats" -s h -l help -d 'Print help'
complete -c ringway -n "__fish_ringway_using_subcommand doctor" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand doctor" -l json -d 'Write one JSON object'
complete -c ringway -n "__fish_ringway_using_subcommand doctor" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand doctor" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c ringway -n "__fish_ringway_using_subcommand top" -l interval -d 'Seconds between two looks' -r
complete -c ringway -n "__fish_ringway_using_subcommand top" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand top" -l once -d 'Show one interval and end, as also happens where standard output is no terminal'
complete -c ringway -n "__fish_ringway_using_subcommand top" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand top" -s h -l help -d 'Print help'
complete -c ringway -n "__fish_ringway_using_subcommand drops" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand drops" -l json -d 'Write one JSON object per tunnel, each on a line of its own'
complete -c ringway -n "__fish_ringway_using_subcommand drops" -l all -d 'Show every reason, also those that never happened'
complete -c ringway -n "__fish_ringway_using_subcommand drops" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand drops" -s h -l help -d 'Print help'
complete -c ringway -n "__fish_ringway_using_subcommand capture" -l peer -d 'Only packets from and to this peer: its name or public key' -r
complete -c ringway -n "__fish_ringway_using_subcommand capture" -s w -l write -d 'Write pcapng to FILE, or to standard output for "-", instead of a line per packet' -r -F
complete -c ringway -n "__fish_ringway_using_subcommand capture" -s c -l count -d 'End after so many packets' -r
complete -c ringway -n "__fish_ringway_using_subcommand capture" -l seconds -d 'End after so many seconds' -r
complete -c ringway -n "__fish_ringway_using_subcommand capture" -s s -l snap-len -d 'Take at most so many bytes of each packet' -r
complete -c ringway -n "__fish_ringway_using_subcommand capture" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand capture" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand capture" -s h -l help -d 'Print help'
complete -c ringway -n "__fish_ringway_using_subcommand explain" -s i -l interface -d 'The interface, or with a "/" the path of its control socket or of a directory of them [default: all that run, from /run/ringway]' -r
complete -c ringway -n "__fish_ringway_using_subcommand explain" -l log-level -d 'Log messages of this level and above [default: info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''"
complete -c ringway -n "__fish_ringway_using_subcommand explain" -l json -d 'Write one JSON object'
complete -c ringway -n "__fish_ringway_using_subcommand explain" -s v -l verbose -d 'Log more: debug messages; twice: everything short of single packets'
complete -c ringway -n "__fish_ringway_using_subcommand explain" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "run" -d 'Run a tunnel in the foreground until SIGINT or SIGTERM'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "up" -d 'Run a tunnel in the background'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "down" -d 'End a tunnel, and come back once all is put back as it was'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "check" -d 'Check a configuration and the key files that it names, without running it'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "convert" -d 'Write a configuration of wg-quick\'s as TOML to standard output, with the keys that are in it'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "genkey" -d 'Make a private key and write it to standard output'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "pubkey" -d 'Read a private key from standard input and write its public key to standard output'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "genpsk" -d 'Make a preshared key and write it to standard output'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "unblock" -d 'Lift the kill switch that a daemon left which was killed, or whose configuration says lockdown_keep'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "leaktest" -d 'Show whether anything leaves beside a tunnel'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "cleanup" -d 'Remove what a daemon that was killed has left: routing rules, packet filters, name servers, sockets'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "status" -d 'Show running tunnels: peers, workers, offloads, drops'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "upgrade" -d 'Have the program that is installed by now go on with a running tunnel, without a gap'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "reload" -d 'Read a running tunnel\'s configuration file again and carry out what changed in it'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "apply" -d 'Make another file what a running tunnel does'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "confirm" -d 'Keep what "ringway apply --confirm" changed'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "peer" -d 'Add, change, remove and list the peers of a running tunnel'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "set" -d 'Change a running tunnel\'s interface'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "save" -d 'Write what a running tunnel does into its configuration file'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "latency" -d 'Show how long packets take inside a running tunnel, by stage'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "stats" -d 'Show what running tunnels have counted since they started or since the last reset'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "doctor" -d 'Look for what stands in a tunnel\'s way: kernel, system, configuration, paths to the peers'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "top" -d 'Show what running tunnels do at this moment: speeds, drops, round trips, latency'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "drops" -d 'Show which packets were dropped, where, why, and what to do about it'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "capture" -d 'Capture packets inside a tunnel: a line each, or pcapng for tcpdump and Wireshark'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "explain" -d 'Tell whether a packet would pass, by which rule, to which peer and lane, and if not, why'
complete -c ringway -n "__fish_ringway_using_subcommand help; and not __fish_seen_subcommand_from run up down check convert genkey pubkey genpsk unblock leaktest cleanup status upgrade reload apply confirm peer set save latency stats doctor top drops capture explain help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c ringway -n "__fish_ringway_using_subcommand help; and __fish_seen_subcommand_from peer" -f -a "add" -d 'Add a peer'
complete -c ringway -n "__fish_ringway_using_subcommand help; and __fish_seen_subcommand_from peer" -f -a "set" -d 'Change a peer: only what is given changes, and an empty text takes a setting away'
complete -c ringway -n "__fish_ringway_using_subcommand help; and __fish_seen_subcommand_from peer" -f -a "remove" -d 'Remove a peer'
complete -c ringway -n "__fish_ringway_using_subcommand help; and __fish_seen_subcommand_from peer" -f -a "list" -d 'List the peers, a line each: public key, name, endpoint, allowed IPs'
complete -c ringway -n "__fish_ringway_using_subcommand help; and __fish_seen_subcommand_from set" -f -a "mtu" -d 'Set the MTU: "auto" (what the routes to the endpoints allow), or bytes'
