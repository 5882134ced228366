//! The models this worker knows: cards from `models/*.toml`, and which of them are being served.
//!
//! Owns the cards, where each served model's files are, and each model's availability. Knows nothing of candle or
//! HTTP: it never opens a checkpoint.

mod cards;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

pub use cards::{KnownModel, Licence, embedded_files, known_model, known_models};

use crate::domain::ids::ModelId;
use crate::domain::image::RgbImage;
use crate::domain::model::{ModelCard, ModelFiles};
use crate::domain::model_source::ModelSource;
use crate::domain::precision::Precision;
use crate::domain::spec::{GenerateParams, GenerateSpec};

/// Whether a model draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// Known, but this worker was not told to serve it.
    NotServed,
    /// Its engine is being built and has not drawn yet.
    Loading,
    /// Its engine has drawn, and has not failed since.
    Ready,
    /// Its engine failed. It may be under reconstruction.
    Failed,
}

/// Why the catalog could not be made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// The id has no card and no folder.
    #[error(
        "no model `{0}` is known: name the folder of its checkpoint, `{0}=DIR`, or fetch it if it is the name of a repository on the hub, `fluxserve models download {0}`"
    )]
    UnknownModel(ModelId),
    /// The id has a card, but its files are not here.
    #[error(
        "the weights of `{0}` are not here: `fluxserve models download {0}` fetches them; or name their folder, `{0}=DIR`"
    )]
    NoFiles(ModelId),
    /// A setting is about a model that is not known.
    #[error(
        "`max_input_images` names the model `{0}`, which is not known: `fluxserve models list` lists those that are"
    )]
    NoCard(ModelId),
    /// The id has a card that says why it cannot be served.
    #[error("`{id}` does not work yet: {reason}")]
    NotYet {
        /// The model.
        id: ModelId,
        /// Why.
        reason: String,
    },
    /// The same id twice.
    #[error("the model `{0}` is named twice")]
    Duplicate(ModelId),
}

/// How many engines draw with a model, each on a device of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replicas {
    /// So many have drawn, and have not failed since.
    pub ready: u32,
    /// So many there should be.
    pub desired: u32,
}

/// How far the weights of a model have been read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loaded {
    /// So many bytes have been.
    pub bytes: u64,
    /// So many there are.
    pub bytes_total: u64,
}

struct Served {
    files: ModelFiles,
    availability: Availability,
    replicas: Replicas,
    /// Of each engine that is loading, by its number.
    loading: BTreeMap<usize, Loaded>,
}

/// Every known model and the state of those that are served.
pub struct Catalog {
    cards: BTreeMap<ModelId, Arc<ModelCard>>,
    /// Models that have a name and do not work yet, and why.
    not_yet: BTreeMap<ModelId, String>,
    served: Mutex<BTreeMap<ModelId, Served>>,
    precision: Precision,
}

impl Catalog {
    /// The built-in cards, with `choices` to be served. An id without a card gets the values of FLUX.1-dev's.
    ///
    /// # Errors
    /// When a choice names no files, or a model twice.
    pub fn new(choices: &[ModelSource]) -> Result<Self, CatalogError> {
        let (mut cards, mut not_yet) = (BTreeMap::new(), BTreeMap::new());
        for KnownModel { card, not_yet: reason, .. } in known_models() {
            match reason {
                Some(reason) => drop(not_yet.insert(card.id, reason)),
                None => drop(cards.insert(card.id.clone(), Arc::new(card))),
            }
        }
        let mut served = BTreeMap::new();
        for choice in choices {
            let id = &choice.id;
            if let Some(reason) = not_yet.get(id) {
                return Err(CatalogError::NotYet { id: id.clone(), reason: reason.clone() });
            }
            let files = match &choice.directory {
                Some(directory) => ModelFiles::Directory(directory.clone()),
                None => match embedded_files(id) {
                    Some(files) => files,
                    None if cards.contains_key(id) => return Err(CatalogError::NoFiles(id.clone())),
                    None => return Err(CatalogError::UnknownModel(id.clone())),
                },
            };
            if !cards.contains_key(id) {
                cards.insert(id.clone(), Arc::new(card_or_flux_dev(id)));
            }
            let replicas = Replicas { ready: 0, desired: 1 };
            let entry = Served { files, availability: Availability::Loading, replicas, loading: BTreeMap::new() };
            if served.insert(id.clone(), entry).is_some() {
                return Err(CatalogError::Duplicate(id.clone()));
            }
        }
        Ok(Self { cards, not_yet, served: Mutex::new(served), precision: Precision::default() })
    }

    /// Why a model that has a name does not work yet.
    pub fn not_yet(&self, id: &ModelId) -> Option<&str> {
        self.not_yet.get(id).map(String::as_str)
    }

    /// The card of a known model, served or not.
    pub fn card(&self, id: &ModelId) -> Option<&Arc<ModelCard>> {
        self.cards.get(id)
    }

    /// Every known card: first those of the models that are served, then the others, each ordered by id.
    pub fn cards(&self) -> Vec<&Arc<ModelCard>> {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut cards, others): (Vec<_>, Vec<_>) = self.cards.values().partition(|card| served.contains_key(&card.id));
        cards.extend(others);
        cards
    }

    /// The models to be served, with their files, ordered by id.
    pub fn served(&self) -> Vec<(Arc<ModelCard>, ModelFiles)> {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = served.iter();
        entries.map(|(id, entry)| (Arc::clone(&self.cards[id]), entry.files.clone())).collect()
    }

    /// Whether a model draws now.
    pub fn availability(&self, id: &ModelId) -> Availability {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.get(id).map_or(Availability::NotServed, |entry| entry.availability)
    }

    /// How many engines a model has; none where it is not served.
    pub fn replicas(&self, id: &ModelId) -> Replicas {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.get(id).map_or(Replicas::default(), |entry| entry.replicas)
    }

    /// How far a model's engines have read its weights, all together; `None` where none is reading.
    pub fn loading(&self, id: &ModelId) -> Option<Loaded> {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let engines = served.get(id)?.loading.values().copied();
        engines.reduce(|a, b| Loaded { bytes: a.bytes + b.bytes, bytes_total: a.bytes_total + b.bytes_total })
    }

    /// Notes how far an engine of a model has read its weights; `None` when it has ended, one way or the other.
    pub fn note_loading(&self, id: &ModelId, engine: usize, loaded: Option<Loaded>) {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = served.get_mut(id) else { return };
        match loaded {
            Some(loaded) => drop(entry.loading.insert(engine, loaded)),
            None => drop(entry.loading.remove(&engine)),
        }
    }

    /// Which state of its repository a served model is, where that is known.
    pub fn revision(&self, id: &ModelId) -> Option<String> {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.get(id)?.files.revision()
    }

    /// Most images that a request to any of the served models may bring.
    pub fn input_images_max(&self) -> usize {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.keys().map(|id| self.cards[id].input_images_max).max().unwrap_or(0)
    }

    /// Lets requests to these models bring more images, or fewer, than their cards say.
    ///
    /// # Errors
    /// When a model is not known.
    pub fn with_input_images_max(mut self, counts: &BTreeMap<ModelId, usize>) -> Result<Self, CatalogError> {
        for (id, count) in counts {
            let card = self.cards.get_mut(id).ok_or_else(|| CatalogError::NoCard(id.clone()))?;
            Arc::make_mut(card).input_images_max = *count;
        }
        Ok(self)
    }

    /// The catalog of a worker whose engines draw in this precision.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// In which precision the served models draw.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Notes what became of a served model's engines. Ids that are not served are ignored.
    pub fn set_availability(&self, id: &ModelId, availability: Availability, replicas: Replicas) {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = served.get_mut(id) {
            (entry.availability, entry.replicas) = (availability, replicas);
        }
    }

    /// Whether at least one model draws now.
    pub fn any_ready(&self) -> bool {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.values().any(|entry| entry.availability == Availability::Ready)
    }
}

/// The card of a model; one without a card gets the values of FLUX.1-dev's.
pub fn card_or_flux_dev(id: &ModelId) -> ModelCard {
    known_model(id).map_or_else(|| ModelCard { id: id.clone(), ..cards::flux_dev() }, |known| known.card)
}

/// The smallest image a card allows: what an engine draws to prove itself before it is called ready.
///
/// # Panics
/// When the card's own limits contradict each other, which the tests of the built-in cards exclude.
pub fn warm_up_spec(card: &ModelCard) -> GenerateSpec {
    let params = GenerateParams {
        prompt: "warm-up".into(),
        width: Some(card.limits.width_min),
        height: Some(card.limits.height_min),
        steps: Some(card.limits.steps_min),
        input_images: vec![blank(card.limits.width_min, card.limits.height_min); card.input_images_min],
        ..GenerateParams::default()
    };
    GenerateSpec::new(params, card).expect("a card's smallest image lies within its limits")
}

fn blank(width: u32, height: u32) -> Arc<RgbImage> {
    let pixels = vec![u8::MAX; width as usize * height as usize * 3];
    Arc::new(RgbImage::new(width, height, pixels).expect("three bytes per pixel"))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn choice(id: &str, directory: Option<&str>) -> ModelSource {
        ModelSource { id: ModelId::new(id), directory: directory.map(PathBuf::from) }
    }

    #[test]
    fn what_engines_have_read_of_a_model_adds_up() {
        let id = ModelId::new("fluxserve/flux-shapes");
        let catalog = Catalog::new(&[choice(id.as_str(), None)]).expect("a valid choice");
        assert_eq!(catalog.loading(&id), None);
        catalog.note_loading(&id, 0, Some(Loaded { bytes: 1, bytes_total: 10 }));
        catalog.note_loading(&id, 1, Some(Loaded { bytes: 2, bytes_total: 10 }));
        catalog.note_loading(&id, 0, Some(Loaded { bytes: 5, bytes_total: 10 }));
        assert_eq!(catalog.loading(&id), Some(Loaded { bytes: 7, bytes_total: 20 }));
        catalog.note_loading(&id, 0, None);
        assert_eq!(catalog.loading(&id), Some(Loaded { bytes: 2, bytes_total: 10 }));
        catalog.note_loading(&id, 1, None);
        assert_eq!(catalog.loading(&id), None);
    }

    #[test]
    fn a_known_model_that_is_not_served_says_so() {
        let catalog = Catalog::new(&[choice("fluxserve/flux-shapes", None)]).expect("a valid choice");
        assert_eq!(catalog.availability(&ModelId::new("black-forest-labs/FLUX.1-dev")), Availability::NotServed);
        assert_eq!(catalog.availability(&ModelId::new("fluxserve/flux-shapes")), Availability::Loading);
        assert!(!catalog.any_ready());
        catalog.set_availability(
            &ModelId::new("fluxserve/flux-shapes"),
            Availability::Ready,
            Replicas { ready: 1, desired: 2 },
        );
        assert_eq!(catalog.replicas(&ModelId::new("fluxserve/flux-shapes")).desired, 2);
        assert!(catalog.any_ready());
    }

    #[test]
    fn an_id_without_a_card_borrows_the_values_of_flux_dev() {
        let catalog = Catalog::new(&[choice("my/tune", Some("/weights"))]).expect("a valid choice");
        let card = catalog.card(&ModelId::new("my/tune")).expect("known now");
        assert_eq!(card.id.as_str(), "my/tune");
        assert_eq!((card.defaults.width, card.defaults.steps), (512, 30));
        assert_eq!(catalog.served().len(), 1);
    }

    #[test]
    fn served_models_come_first() {
        let catalog = Catalog::new(&[choice("z/tune", Some("/weights")), choice("fluxserve/flux-shapes", None)]);
        let catalog = catalog.expect("valid choices");
        let ids: Vec<&str> = catalog.cards().into_iter().map(|card| card.id.as_str()).collect();
        assert_eq!(ids[..2], ["fluxserve/flux-shapes", "z/tune"]);
        assert!(ids.len() > 2 && ids[2..].is_sorted(), "{ids:?}");
    }

    #[test]
    fn choices_without_files_are_refused() {
        let dev = ModelId::new("black-forest-labs/FLUX.1-dev");
        let no_files = Catalog::new(&[choice(dev.as_str(), None)]).err();
        assert_eq!(no_files, Some(CatalogError::NoFiles(dev)));
        let unknown = Catalog::new(&[choice("my/tune", None)]).err();
        assert_eq!(unknown, Some(CatalogError::UnknownModel(ModelId::new("my/tune"))));
        let twice = Catalog::new(&[choice("a", Some("/x")), choice("a", Some("/y"))]).err();
        assert_eq!(twice, Some(CatalogError::Duplicate(ModelId::new("a"))));
    }

    #[test]
    fn a_model_that_does_not_work_yet_is_known_and_refused_with_the_reason() {
        for name in ["Fill", "Canny", "Depth", "Kontext"] {
            let id = format!("black-forest-labs/FLUX.1-{name}-dev");
            let catalog = Catalog::new(&[choice("fluxserve/flux-shapes", None)]).expect("a valid choice");
            assert!(catalog.card(&ModelId::new(&id)).is_none(), "nothing can be asked of it");
            assert!(catalog.not_yet(&ModelId::new(&id)).is_some_and(|reason| reason.starts_with("it ")));
            for directory in [None, Some("/weights")] {
                let refused = Catalog::new(&[choice(&id, directory)]).err().expect("refused").to_string();
                assert!(refused.starts_with(&format!("`{id}` does not work yet: it ")), "{refused}");
            }
        }
    }

    #[test]
    fn the_family_has_the_values_of_its_authors() {
        let card =
            |name: &str| known_model(&ModelId::new(format!("black-forest-labs/FLUX.1-{name}"))).expect("known").card;
        let (schnell, krea) = (card("schnell"), card("Krea-dev"));
        assert_eq!((schnell.defaults.steps, schnell.sequence_length), (4, 256));
        let guided = GenerateParams { prompt: "a fox".into(), guidance: Some(3.5), ..GenerateParams::default() };
        assert!(GenerateSpec::new(guided.clone(), &krea).is_ok());
        let refused = GenerateSpec::new(guided, &schnell).expect_err("it has no place for a guidance value");
        assert_eq!(refused[0].field, "guidance");
        assert_eq!((krea.defaults.steps, krea.defaults.guidance), (28, 4.5));
    }

    #[test]
    fn every_built_in_card_allows_its_own_defaults_and_warm_up() {
        for KnownModel { card, licence, .. } in known_models() {
            assert!(licence.url.starts_with("https://"), "{}", card.id);
            let params = GenerateParams {
                prompt: "a fox".into(),
                input_images: (0..card.input_images_min).map(|_| blank(64, 64)).collect(),
                ..GenerateParams::default()
            };
            assert!(GenerateSpec::new(params, &card).is_ok(), "{}", card.id);
            assert_eq!(warm_up_spec(&card).steps(), card.limits.steps_min);
            assert!(card.input_images_max <= 1, "there is a use for one: {}", card.id);
        }
    }

    #[test]
    fn a_card_can_be_told_to_take_images() {
        let dev = ModelId::new("black-forest-labs/FLUX.1-dev");
        let told = |id: &ModelId| {
            let catalog = Catalog::new(&[choice("my/tune", Some("/weights"))]).expect("a valid choice");
            catalog.with_input_images_max(&BTreeMap::from([(id.clone(), 1)]))
        };
        let catalog = told(&dev).expect("known");
        assert_eq!(catalog.card(&dev).map(|card| card.input_images_max), Some(1));
        assert_eq!(catalog.input_images_max(), 0, "it is not served");
        assert_eq!(told(&ModelId::new("my/tune")).expect("known").input_images_max(), 1);
        let nobody = ModelId::new("nobody/nothing");
        assert_eq!(told(&nobody).err(), Some(CatalogError::NoCard(nobody)));
    }

    #[test]
    fn the_demo_model_is_a_whole_diffusers_checkpoint() {
        let Some(ModelFiles::Embedded(files)) = embedded_files(&ModelId::new("fluxserve/flux-shapes")) else {
            panic!("compiled in");
        };
        for path in ["model_index.json", "transformer/config.json", "vae/config.json", "tokenizer/vocab.json"] {
            assert!(files.iter().any(|file| file.path == path && !file.bytes.is_empty()), "{path}");
        }
    }
}
