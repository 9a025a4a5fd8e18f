"""The command line. One file a command; `main` lists them without importing any."""
