"""The command line: options, the only prints, exit codes. One file a command, imported when it is called."""
