//! Parses the command line and runs it; an error becomes a message and an exit code.

fn main() {}
