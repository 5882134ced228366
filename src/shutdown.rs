//! From the signal to the exit: stop accepting, drain with a deadline, close.
