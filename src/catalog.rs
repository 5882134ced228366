//! Known models: cards from `models/*.toml`, and which of them are served.
//!
//! Owns the cards, the location of each served model's files, and each model's availability. Knows nothing of candle or
//! HTTP: it never opens a checkpoint.

mod cards;
mod repositories;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

pub use cards::{KnownModel, Licence, embedded_files, known_model, known_models};
pub use repositories::{FileRepository, Part, RepositoryFile, file_repositories, file_repository, open_parts};

use crate::domain::conditioning::{Conditioning, GivenImage, IMAGES, ImageRole, REFERENCES_MAX, count_in_words};
use crate::domain::ids::ModelId;
use crate::domain::image::RgbImage;
use crate::domain::model::{ModelCard, ModelFiles};
use crate::domain::model_source::ModelSource;
use crate::domain::precision::Precision;
use crate::domain::spec::{GenerateParams, GenerateSpec};

/// Whether a model generates images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// Known, but not served by this worker.
    NotServed,
    /// Its engine is being built or warmed up.
    Loading,
    /// Its engine is warmed up, and has not failed since.
    Ready,
    /// Its engine failed. It may be in a rebuild.
    Failed,
}

/// Why the catalog cannot be built.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// The id has no card and no folder.
    #[error(
        "the model `{0}` is not known: name the folder of its checkpoint, `{0}=DIR`, or download it if it is a repository on the hub, `fluxserve models download {0}`"
    )]
    UnknownModel(ModelId),
    /// The id has a card, but its files are not here.
    #[error(
        "the weights of `{0}` are not here: download them with `fluxserve models download {0}`, or name their folder, `{0}=DIR`"
    )]
    NoFiles(ModelId),
    /// A setting names an unknown model.
    #[error("`max_input_images` names the unknown model `{0}`: `fluxserve models list` lists the known ones")]
    NoCard(ModelId),
    /// A setting gives a model a number of images that it cannot take.
    #[error("`max_input_images` of `{id}` must be {allowed}, not {count}")]
    InputImages {
        /// The model.
        id: ModelId,
        /// What it can take, in words.
        allowed: String,
        /// As set.
        count: usize,
    },
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

/// Engines of a model, each on a device of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replicas {
    /// Engines that are ready.
    pub ready: u32,
    /// Engines that there should be.
    pub desired: u32,
}

/// Progress of reading a model's weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Bytes read so far.
    pub bytes: u64,
    /// Bytes in total.
    pub bytes_total: u64,
}

struct Served {
    files: ModelFiles,
    availability: Availability,
    replicas: Replicas,
    /// Progress of each loading engine, by its number.
    loading: BTreeMap<usize, Loaded>,
}

/// Every known model, and the state of the served ones.
pub struct Catalog {
    cards: BTreeMap<ModelId, Arc<ModelCard>>,
    /// Models with a card that do not work yet, and why.
    not_yet: BTreeMap<ModelId, String>,
    served: Mutex<BTreeMap<ModelId, Served>>,
    precision: Precision,
}

impl Catalog {
    /// The built-in cards, with `choices` to be served. An id without a card gets the values that [`card_of`] says.
    ///
    /// # Errors
    /// When a choice has no files, or a model is named twice.
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
            let files = match choice.files() {
                Some(files) => files,
                None => match embedded_files(id) {
                    Some(files) => files,
                    None if cards.contains_key(id) => return Err(CatalogError::NoFiles(id.clone())),
                    None => return Err(CatalogError::UnknownModel(id.clone())),
                },
            };
            if !cards.contains_key(id) {
                cards.insert(id.clone(), Arc::new(card_of(choice)));
            }
            let replicas = Replicas { ready: 0, desired: 1 };
            let entry = Served { files, availability: Availability::Loading, replicas, loading: BTreeMap::new() };
            if served.insert(id.clone(), entry).is_some() {
                return Err(CatalogError::Duplicate(id.clone()));
            }
        }
        Ok(Self { cards, not_yet, served: Mutex::new(served), precision: Precision::default() })
    }

    /// Why a known model does not work yet.
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

    /// Whether a model generates images now.
    pub fn availability(&self, id: &ModelId) -> Availability {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.get(id).map_or(Availability::NotServed, |entry| entry.availability)
    }

    /// Engines of a model; none if it is not served.
    pub fn replicas(&self, id: &ModelId) -> Replicas {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.get(id).map_or(Replicas::default(), |entry| entry.replicas)
    }

    /// Progress of all engines of a model that read its weights; `None` if none does.
    pub fn loading(&self, id: &ModelId) -> Option<Loaded> {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let engines = served.get(id)?.loading.values().copied();
        engines.reduce(|a, b| Loaded { bytes: a.bytes + b.bytes, bytes_total: a.bytes_total + b.bytes_total })
    }

    /// Sets the progress of an engine that reads its weights; `None` when it has succeeded or failed.
    pub fn note_loading(&self, id: &ModelId, engine: usize, loaded: Option<Loaded>) {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = served.get_mut(id) else { return };
        match loaded {
            Some(loaded) => drop(entry.loading.insert(engine, loaded)),
            None => drop(entry.loading.remove(&engine)),
        }
    }

    /// Revision of a served model's repository, if known.
    pub fn revision(&self, id: &ModelId) -> Option<String> {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.get(id)?.files.revision()
    }

    /// Maximum images of a request to any served model, of all roles.
    pub fn images_max(&self) -> usize {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.keys().map(|id| self.cards[id].images_max()).max().unwrap_or(0)
    }

    /// The catalog with another card of a model: as its files make it.
    #[must_use]
    pub fn with_card(mut self, card: ModelCard) -> Self {
        self.cards.insert(card.id.clone(), Arc::new(card));
        self
    }

    /// Overrides the most input images of these models' cards.
    ///
    /// # Errors
    /// When a model is not known, or does not take so many or so few.
    pub fn with_input_images_max(mut self, counts: &BTreeMap<ModelId, usize>) -> Result<Self, CatalogError> {
        for (id, count) in counts {
            let card = self.cards.get_mut(id).ok_or_else(|| CatalogError::NoCard(id.clone()))?;
            let max = if card.conditioning == Conditioning::References { REFERENCES_MAX } else { 1 };
            let allowed = card.input_images_min..=max;
            if !allowed.contains(count) {
                let allowed = count_in_words(&allowed);
                return Err(CatalogError::InputImages { id: id.clone(), allowed, count: *count });
            }
            Arc::make_mut(card).input_images_max = *count;
        }
        Ok(self)
    }

    /// The catalog of a worker whose engines compute in this precision.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Precision of the served models.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Sets the state of a served model's engines. Ignores ids that are not served.
    pub fn set_availability(&self, id: &ModelId, availability: Availability, replicas: Replicas) {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = served.get_mut(id) {
            (entry.availability, entry.replicas) = (availability, replicas);
        }
    }

    /// Whether at least one model is ready.
    pub fn any_ready(&self) -> bool {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.values().any(|entry| entry.availability == Availability::Ready)
    }
}

/// The card of a model; one without a card gets the values of FLUX.1-dev.
pub fn card_or_flux_dev(id: &ModelId) -> ModelCard {
    card_with(id, None)
}

/// The card of a model as it is served: its own; for a known repository of single files, that of the model to which the
/// file belongs; for any other, the values of FLUX.1-dev.
pub fn card_of(source: &ModelSource) -> ModelCard {
    card_with(&source.id, source.directory.as_deref())
}

/// The card of a model without one of its own, whose checkpoint takes this: the values of FLUX.1-Fill-dev, FLUX.1-Canny-dev,
/// FLUX.1-Kontext-dev or FLUX.1-dev.
pub fn card_like(id: &ModelId, conditioning: Conditioning) -> ModelCard {
    let like = match conditioning {
        Conditioning::Prompt => "black-forest-labs/FLUX.1-dev",
        Conditioning::References => "black-forest-labs/FLUX.1-Kontext-dev",
        Conditioning::Fill => "black-forest-labs/FLUX.1-Fill-dev",
        Conditioning::Control => "black-forest-labs/FLUX.1-Canny-dev",
    };
    let known = known_model(&ModelId::new(like));
    ModelCard { id: id.clone(), ..known.map_or_else(cards::flux_dev, |known| known.card) }
}

fn card_with(id: &ModelId, path: Option<&Path>) -> ModelCard {
    if let Some(known) = known_model(id) {
        return known.card;
    }
    let file = path.and_then(Path::file_name).and_then(std::ffi::OsStr::to_str);
    let card = file_repository(id).and_then(|repository| repository.card(file));
    card.unwrap_or_else(|| ModelCard { id: id.clone(), ..cards::flux_dev() })
}

/// The smallest image that a card allows, which an engine generates to warm up before it is ready.
///
/// # Panics
/// When the card's own limits contradict each other, which the tests of the built-in cards exclude.
pub fn warm_up_spec(card: &ModelCard) -> GenerateSpec {
    let params = GenerateParams {
        prompt: "warm-up".into(),
        width: Some(card.limits.width_min),
        height: Some(card.limits.height_min),
        steps: Some(card.limits.steps_min),
        images: warm_up_images(card),
        ..GenerateParams::default()
    };
    GenerateSpec::new(params, card).expect("a card's smallest image lies within its limits")
}

/// The fewest images that a card takes, all white.
fn warm_up_images(card: &ModelCard) -> Vec<GivenImage> {
    let size = |role| match role {
        ImageRole::Style => card.attached.style.map_or((0, 0), |style| (style.side, style.side)),
        _ => (card.limits.width_min, card.limits.height_min),
    };
    let of = |role: ImageRole| {
        let image = blank(size(role).0, size(role).1);
        vec![GivenImage::new(IMAGES, role, image); *card.images(role).start()]
    };
    ImageRole::ALL.into_iter().flat_map(of).collect()
}

fn blank(width: u32, height: u32) -> Arc<RgbImage> {
    let pixels = vec![u8::MAX; width as usize * height as usize * 3];
    Arc::new(RgbImage::new(width, height, pixels).expect("three bytes per pixel"))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::domain::conditioning::Conditioning;

    fn choice(id: &str, directory: Option<&str>) -> ModelSource {
        ModelSource::new(ModelId::new(id), directory.map(PathBuf::from))
    }

    #[test]
    fn loading_progress_of_engines_adds_up() {
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
    fn a_known_model_that_is_not_served_is_reported_as_such() {
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
    fn a_repositorys_file_is_served_with_the_values_of_its_model() {
        let file = "/models/flux1-schnell-fp8-e4m3fn.safetensors";
        for (id, path) in [("Kijai/flux-fp8", file), ("city96/FLUX.1-schnell-gguf", "/models/any.gguf")] {
            let catalog = Catalog::new(&[choice(id, Some(path))]).expect("a valid choice");
            let card = catalog.card(&ModelId::new(id)).expect("known now");
            assert_eq!((card.id.as_str(), card.defaults.steps), (id, 4));
        }
        let refused = Catalog::new(&[choice("Kijai/flux-fp8", None)]).err().expect("no file").to_string();
        assert!(refused.contains("`fluxserve models download Kijai/flux-fp8`"), "{refused}");
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
    fn a_model_that_does_not_work_yet_is_refused_with_the_reason() {
        let id = "black-forest-labs/FLUX.2-klein-4B";
        let catalog = Catalog::new(&[choice("fluxserve/flux-shapes", None)]).expect("a valid choice");
        assert!(catalog.card(&ModelId::new(id)).is_none(), "it has no card to serve");
        assert!(catalog.not_yet(&ModelId::new(id)).is_some_and(|reason| reason.starts_with("it ")));
        for directory in [None, Some("/weights")] {
            let refused = Catalog::new(&[choice(id, directory)]).err().expect("refused").to_string();
            assert!(refused.starts_with(&format!("`{id}` does not work yet: it ")), "{refused}");
        }
    }

    #[test]
    fn models_that_images_steer_are_served_with_their_own_values() {
        for (name, conditioning, steps, guidance) in [
            ("Canny", Conditioning::Control, 50, 30.0),
            ("Depth", Conditioning::Control, 30, 10.0),
            ("Fill", Conditioning::Fill, 50, 30.0),
            ("Kontext", Conditioning::References, 28, 2.5),
        ] {
            let id = format!("black-forest-labs/FLUX.1-{name}-dev");
            let catalog = Catalog::new(&[choice(&id, Some("/weights"))]).expect("a valid choice");
            let card = catalog.card(&ModelId::new(&id)).expect("known");
            assert_eq!(
                (card.conditioning, card.defaults.steps, card.defaults.guidance),
                (conditioning, steps, guidance)
            );
        }
    }

    #[test]
    fn the_cards_have_the_values_of_the_models_authors() {
        let card =
            |name: &str| known_model(&ModelId::new(format!("black-forest-labs/FLUX.1-{name}"))).expect("known").card;
        let (schnell, krea) = (card("schnell"), card("Krea-dev"));
        assert_eq!((schnell.defaults.steps, schnell.sequence_length), (4, 256));
        let guided = GenerateParams { prompt: "a fox".into(), guidance: Some(3.5), ..GenerateParams::default() };
        assert!(GenerateSpec::new(guided.clone(), &krea).is_ok());
        let refused = GenerateSpec::new(guided, &schnell).expect_err("it takes no guidance");
        assert_eq!(refused[0].field, "guidance");
        assert_eq!((krea.defaults.steps, krea.defaults.guidance), (28, 4.5));
    }

    #[test]
    fn every_built_in_card_allows_its_own_defaults_and_warm_up() {
        for KnownModel { card, licence, .. } in known_models() {
            assert!(licence.url.starts_with("https://"), "{}", card.id);
            let params = GenerateParams {
                prompt: "a fox".into(),
                width: Some(64),
                height: Some(64),
                images: warm_up_images(&card),
                ..GenerateParams::default()
            };
            assert!(GenerateSpec::new(params, &card).is_ok(), "{}", card.id);
            assert_eq!(warm_up_spec(&card).steps(), card.limits.steps_min);
        }
    }

    #[test]
    fn the_most_input_images_of_a_card_can_be_set() {
        let dev = ModelId::new("black-forest-labs/FLUX.1-dev");
        let with_one = |id: &ModelId| {
            let catalog = Catalog::new(&[choice("my/tune", Some("/weights"))]).expect("a valid choice");
            catalog.with_input_images_max(&BTreeMap::from([(id.clone(), 1)]))
        };
        let catalog = with_one(&dev).expect("known");
        assert_eq!(catalog.card(&dev).map(|card| card.input_images_max), Some(1));
        assert_eq!(catalog.images_max(), 0, "it is not served");
        let tune = with_one(&ModelId::new("my/tune")).expect("known");
        assert_eq!(tune.images_max(), 2, "the input image and its mask");
        let unknown = ModelId::new("unknown/model");
        assert_eq!(with_one(&unknown).err(), Some(CatalogError::NoCard(unknown)));
    }

    #[test]
    fn input_images_can_be_limited_to_what_a_model_takes() {
        let with = |conditioning, count| {
            let card = card_like(&ModelId::new("my/tune"), conditioning);
            let catalog = Catalog::new(&[choice("my/tune", Some("/weights"))]).expect("a valid choice").with_card(card);
            catalog.with_input_images_max(&BTreeMap::from([(ModelId::new("my/tune"), count)]))
        };
        for (conditioning, count) in [
            (Conditioning::Prompt, 0),
            (Conditioning::Prompt, 1),
            (Conditioning::References, 0),
            (Conditioning::References, REFERENCES_MAX),
            (Conditioning::Fill, 1),
            (Conditioning::Control, 1),
        ] {
            let catalog = with(conditioning, count).expect("allowed");
            let card = catalog.card(&ModelId::new("my/tune")).expect("served");
            assert_eq!(card.input_images_max, count, "{conditioning:?}");
        }
        for (conditioning, count, rule) in [
            (Conditioning::Prompt, 2, "must be from 0 to 1, not 2"),
            (Conditioning::References, 5, "must be from 0 to 4, not 5"),
            (Conditioning::Fill, 0, "must be 1, not 0"),
            (Conditioning::Control, 2, "must be 1, not 2"),
        ] {
            let error = with(conditioning, count).err().expect("refused").to_string();
            assert!(error.contains("`my/tune`") && error.contains(rule), "{error}");
        }
    }

    #[test]
    fn the_demo_model_is_a_complete_diffusers_checkpoint() {
        let Some(ModelFiles::Embedded(files)) = embedded_files(&ModelId::new("fluxserve/flux-shapes")) else {
            panic!("compiled in");
        };
        for path in ["model_index.json", "transformer/config.json", "vae/config.json", "tokenizer/vocab.json"] {
            assert!(files.iter().any(|file| file.path == path && !file.bytes.is_empty()), "{path}");
        }
    }
}
