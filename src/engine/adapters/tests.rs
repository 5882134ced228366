//! Recorded adapters in every dialect and algebra against what they must add, and files that are put together by hand.

mod broken;
mod deltas;
mod dialects;
mod made;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use super::*;
use made::Made;

fn reference(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(path)
}

fn adapter(name: &str) -> PathBuf {
    reference("lora/adapters").join(format!("{name}.safetensors"))
}

/// The model that the recorded adapters are for.
fn model() -> &'static Adaptable {
    static MODEL: LazyLock<Adaptable> =
        LazyLock::new(|| Adaptable::of(&ModelFiles::Directory(reference("FLUX.1-dev"))).expect("complete"));
    &MODEL
}

/// What an adapter adds to each module, as matrices `[outputs, columns]`. `NAME.bias` is what it adds to a bias; what it replaces
/// is the new value.
fn differences(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let adapter = Adapter::open(path, model()).unwrap_or_else(|error| panic!("{error}"));
    adapter.check().unwrap_or_else(|error| panic!("{error}"));
    let base = TensorFile::open(&reference("FLUX.1-dev/flux1-dev.safetensors")).expect("the base");
    let mut differences = BTreeMap::new();
    for changes in adapter.modules(model()) {
        let ModuleChanges { name, outputs, changes, .. } = changes.expect("readable");
        let columns = changes[0].columns;
        let is_dora = changes.iter().any(|change| change.magnitude.is_some());
        let weight =
            if is_dora { base.weights(&format!("{name}.weight")).expect("read") } else { vec![0.0; outputs * columns] };
        let (mut changed, mut bias) = (weight.clone(), vec![0.0; outputs]);
        for change in &changes {
            assert_eq!(change.columns, columns, "{name}");
            change.apply(&mut changed, 1.0);
            change.apply_to_bias(&mut bias, 1.0);
        }
        if changes.iter().any(|change| change.bias.is_some()) {
            differences.insert(format!("{name}.bias"), bias);
        }
        if changes.iter().any(|change| change.weight.is_some()) {
            differences.insert(name, changed.iter().zip(weight).map(|(new, old)| new - old).collect());
        }
    }
    differences
}
