"""Mixed load for minutes, with loads and unloads, and a look at what the server holds before and after."""
