//! Engines that cannot be built.

use super::*;

/// A queue whose engine cannot be built for the first `failures` times.
fn reluctant(settings: &QueueSettings, failures: u32) -> Queue {
    let (gate, _) = gate();
    let tries = AtomicU32::new(0);
    let build = move || {
        if tries.fetch_add(1, Ordering::Relaxed) < failures {
            return Err(EngineError::Fatal("the device fell off the bus".into()));
        }
        Ok(gated_engine(&gate))
    };
    Queue::start(settings, vec![Box::new(build)]).expect("a thread")
}

#[tokio::test]
async fn an_engine_is_rebuilt_until_it_is_ready_and_jobs_wait_for_it() {
    let queue = reluctant(&settings(), 20);
    let mut events =
        queue.reserve(KeyId::generate()).expect("a reservation").submit(JobId::generate(), spec(), Terms::default());
    let mut state = queue.state();
    let failed = state.wait_for(|state| matches!(state, EngineState::Rebuilding { builds_failed: 5.., .. })).await;
    let EngineState::Rebuilding { cause, .. } = failed.expect("a queue").clone() else { unreachable!() };
    assert!(cause.contains("the device fell off the bus"), "{cause}");
    ready(&queue).await;
    while next(&mut events).await.is_some_and(|event| !matches!(event, QueueEvent::Finished(_))) {}
    queue.close();
}

#[tokio::test]
async fn jobs_do_not_wait_forever_for_an_engine_that_cannot_be_built() {
    let queue = reluctant(&QueueSettings { outage_max: Duration::from_millis(50), ..settings() }, u32::MAX);
    let mut events =
        queue.reserve(KeyId::generate()).expect("a reservation").submit(JobId::generate(), spec(), Terms::default());
    let Some(QueueEvent::Failed(failure)) = next(&mut events).await else { panic!("it must fail") };
    assert_eq!(failure.code, JobFailure::ENGINE_UNAVAILABLE);
    queue.close();
}

#[tokio::test]
async fn a_deadline_also_passes_while_there_is_no_engine() {
    let queue = reluctant(&settings(), u32::MAX);
    let terms = Terms { deadline: Some(Instant::now() + Duration::from_millis(20)), ..Terms::default() };
    let mut events = queue.reserve(KeyId::generate()).expect("a reservation").submit(JobId::generate(), spec(), terms);
    let Some(QueueEvent::Failed(failure)) = next(&mut events).await else { panic!("it must fail") };
    assert_eq!(failure.code, JobFailure::DEADLINE_PASSED);
    queue.close();
}
