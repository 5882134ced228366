//! Rebuilds when a migration is added: the macro that embeds them only notices changes to the files it already knows.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
