//! The SQLite database: pool, pragmas, migrations. Does not know what any table means.
