//! Wires all parts together: the only place that knows everything.
