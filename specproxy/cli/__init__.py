"""The command line. One module per subcommand, imported only when it is the one that was asked for."""
