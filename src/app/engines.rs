//! Starts a queue with its engines for each served model, and waits for them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::bail;

use super::heap;
use super::hub::hint;
use super::kernel_trials::with_faults;
use super::loading::LoadLog;
use crate::catalog::{Catalog, warm_up_spec};
use crate::config::Config;
use crate::domain::device::{DeviceChoice, EngineSettings};
use crate::domain::engine::{EngineError, LoadObserver, StepEngine};
use crate::domain::ids::ModelId;
use crate::domain::model::ModelFiles;
use crate::engine::{self, FluxEngine, LoadTimes};
use crate::queue::{EngineFactory, EngineState, Queue, QueueSettings};

/// Failed builds of an engine after which the start continues without it.
const BUILDS_AT_START_MAX: u32 = 3;

/// Wait before an engine's first rebuild, and the longest before any further one.
const REBUILD_DELAY: Duration = Duration::from_secs(1);
const REBUILD_DELAY_MAX: Duration = Duration::from_mins(1);

/// How long accepted jobs wait for an engine that cannot be built: long enough for a device to be reset by hand.
const OUTAGE_MAX: Duration = Duration::from_mins(15);

/// How long an engine call may take without being considered stalled: longer than the machine may be busy or asleep.
const STALL_MIN: Duration = Duration::from_mins(1);

/// A model that is not ready, and why.
#[derive(Debug)]
pub(super) struct NotReady {
    pub(super) model: ModelId,
    pub(super) cause: String,
}

/// Refuses models with incomplete checkpoints, before anything is started.
pub(super) fn check_models(config: &Config, catalog: &Catalog) -> anyhow::Result<()> {
    for (card, files) in catalog.served() {
        let inspection = engine::inspect(&files);
        if !inspection.is_sound() {
            bail!("the model `{}` cannot be served:\n{inspection}{}", card.id, hint(config, &card.id, &files));
        }
    }
    Ok(())
}

/// Builds an engine for a model's files, which reports to an observer; also returns the durations of the parts of loading.
pub type EngineBuilder = dyn Fn(&ModelFiles, EngineSettings, Arc<dyn LoadObserver>) -> Result<(Box<dyn StepEngine>, LoadTimes), EngineError>
    + Send
    + Sync;

/// Loads FLUX, with the kernels that trials in other processes found fit.
pub(super) fn flux_engine(
    files: &ModelFiles,
    settings: EngineSettings,
    observer: Arc<dyn LoadObserver>,
) -> Result<(Box<dyn StepEngine>, LoadTimes), EngineError> {
    // What an engine before this one held counts as free.
    heap::give_back_all();
    let engine = FluxEngine::load_watched(files, with_faults(settings), observer)
        .map_err(|error| engine::failure(format!("{:#}", anyhow::Error::from(error))))?;
    let times = engine.load_times();
    Ok((Box::new(engine), times))
}

/// A device that is lost to this process, and with it the process.
#[derive(Debug, thiserror::Error)]
#[error(
    "the device of the model `{model}` is lost to this process: {cause}; start it again: accepted jobs are in the database"
)]
pub struct DeviceLost {
    model: ModelId,
    cause: String,
}

/// Waits until a device is lost.
pub(super) async fn device_lost(queues: &BTreeMap<ModelId, Queue>) -> DeviceLost {
    let lost = queues.iter().map(|(model, queue)| {
        Box::pin(async move {
            let mut state = queue.state();
            match state.wait_for(|state| matches!(state, EngineState::DeviceLost { .. })).await.as_deref() {
                Ok(EngineState::DeviceLost { cause }) => DeviceLost { model: model.clone(), cause: cause.clone() },
                _ => std::future::pending().await,
            }
        })
    });
    futures_util::future::select_all(lost).await.0
}

/// Starts a queue with its engines for each served model.
pub(super) fn start_engines(
    config: &Config,
    catalog: &Arc<Catalog>,
    build: &Arc<EngineBuilder>,
) -> anyhow::Result<BTreeMap<ModelId, Queue>> {
    let mut queues = BTreeMap::new();
    let turns: Vec<(DeviceChoice, Turn)> = config.device.iter().map(|device| (device, Turn::default())).collect();
    for (card, files) in catalog.served() {
        let settings = QueueSettings {
            model: card.id.clone(),
            jobs_max: usize::try_from(config.queue.jobs_max)?,
            warm_up: warm_up_spec(&card),
            rebuild_delay: REBUILD_DELAY,
            rebuild_delay_max: REBUILD_DELAY_MAX,
            outage_max: OUTAGE_MAX,
            stall_min: STALL_MIN,
        };
        let factory = |(engine, (device, turn)): (usize, &(DeviceChoice, Turn))| {
            let (model, catalog) = (card.id.clone(), Arc::clone(catalog));
            let log = move || LoadLog::new(model.clone(), engine, Arc::clone(&catalog));
            let settings = config.engine_settings(*device);
            engine_factory(Arc::clone(build), (files.clone(), settings), Arc::clone(turn), log)
        };
        let factories = turns.iter().enumerate().map(factory).collect();
        queues.insert(card.id.clone(), Queue::start(&settings, factories)?);
    }
    Ok(queues)
}

/// Serializes loading onto a device: each model then sees what the earlier ones have left free.
type Turn = Arc<Mutex<()>>;

fn engine_factory(
    build: Arc<EngineBuilder>,
    (files, settings): (ModelFiles, EngineSettings),
    turn: Turn,
    log: impl Fn() -> LoadLog + Send + 'static,
) -> EngineFactory {
    Box::new(move || {
        // A panic while another model was loading does not concern this one.
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let log = Arc::new(log());
        let (engine, times) = build(&files, settings, Arc::clone(&log) as Arc<dyn LoadObserver>)?;
        log.ended(&times);
        Ok(engine)
    })
}

/// Waits until every engine is ready, or has failed often enough to be reported as not ready.
///
/// # Errors
/// When no engine is ready. If only some are not, they are returned, and retried meanwhile.
pub(super) async fn settled(queues: &BTreeMap<ModelId, Queue>) -> anyhow::Result<Vec<NotReady>> {
    let mut not_ready = Vec::new();
    for (model, queue) in queues {
        if let Some(cause) = cause_of_failure(queue).await {
            tracing::warn!(%model, cause, "the model is not ready; the start continues without it");
            not_ready.push(NotReady { model: model.clone(), cause });
        }
    }
    if !not_ready.is_empty() && not_ready.len() == queues.len() {
        let lines: Vec<String> = not_ready
            .iter()
            .map(|NotReady { model, cause }| format!("the model `{model}` cannot be started: {cause}"))
            .collect();
        bail!(lines.join("\n"));
    }
    Ok(not_ready)
}

async fn cause_of_failure(queue: &Queue) -> Option<String> {
    let mut state = queue.state();
    let has_settled = |state: &EngineState| match state {
        EngineState::Loading => false,
        EngineState::Ready | EngineState::DeviceLost { .. } | EngineState::Gone => true,
        EngineState::Rebuilding { builds_failed, .. } => *builds_failed >= BUILDS_AT_START_MAX,
    };
    match state.wait_for(has_settled).await.as_deref() {
        Ok(EngineState::Ready) => None,
        Ok(EngineState::Rebuilding { cause, .. } | EngineState::DeviceLost { cause }) => Some(cause.clone()),
        Ok(EngineState::Loading | EngineState::Gone) | Err(_) => Some("the engine's thread has ended".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::engine::{EngineLimits, Slot};
    use crate::domain::image::RgbImage;
    use crate::domain::spec::GenerateSpec;

    struct Blank;

    impl StepEngine for Blank {
        fn limits(&self) -> EngineLimits {
            EngineLimits { images_max: 1, step_tokens_max: 1 }
        }

        fn admit(&mut self, _: &GenerateSpec) -> Result<Slot, EngineError> {
            Ok(Slot(0))
        }

        fn step(&mut self, _: &[Slot]) -> Result<(), EngineError> {
            Ok(())
        }

        fn finish(&mut self, _: Slot) -> Result<RgbImage, EngineError> {
            Ok(RgbImage::new(1, 1, vec![0; 3]).expect("one pixel"))
        }

        fn release(&mut self, _: Slot) {}
    }

    fn queue(model: &str, factory: EngineFactory) -> (ModelId, Queue) {
        let model = ModelId::new(model);
        let settings = QueueSettings {
            model: model.clone(),
            jobs_max: 1,
            warm_up: warm_up_spec(&crate::catalog::card_or_flux_dev(&model)),
            rebuild_delay: Duration::from_millis(1),
            rebuild_delay_max: Duration::from_millis(2),
            outage_max: OUTAGE_MAX,
            stall_min: STALL_MIN,
        };
        (model, Queue::start(&settings, vec![factory]).expect("a thread"))
    }

    fn sound() -> EngineFactory {
        Box::new(|| Ok(Box::new(Blank) as Box<dyn StepEngine>))
    }

    fn broken() -> EngineFactory {
        Box::new(|| Err(EngineError::Fatal("no such device".into())))
    }

    #[tokio::test]
    async fn one_failing_model_does_not_keep_the_others_from_serving() {
        let queues = BTreeMap::from([queue("test/broken", broken()), queue("test/sound", sound())]);
        let not_ready = settled(&queues).await.expect("one serves");
        assert_eq!((not_ready.len(), not_ready[0].model.as_str()), (1, "test/broken"));
        assert!(not_ready[0].cause.contains("no such device"), "{not_ready:?}");
        assert_eq!(*queues[&ModelId::new("test/sound")].state().borrow(), EngineState::Ready);
        queues.values().for_each(Queue::close);
    }

    #[tokio::test]
    async fn without_any_ready_model_the_start_fails_and_names_model_and_cause() {
        let queues = BTreeMap::from([queue("test/broken", broken())]);
        let error = settled(&queues).await.expect_err("none serves").to_string();
        assert!(error.contains("test/broken") && error.contains("no such device"), "{error}");
        queues.values().for_each(Queue::close);
    }
}
