"""The protocol between server and engine: typed frames over a Unix socket."""
