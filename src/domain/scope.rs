//! What a key may do. Always explicit: nothing means "everything" by being left out.
