//! Reservations, cancellation, deadlines and standings of jobs.

use super::*;

#[tokio::test]
async fn a_canceled_image_has_no_standing_while_the_engine_idles() {
    let (queue, steps) = gated().await;
    let id = JobId::generate();
    let mut events = queue.reserve(KeyId::generate()).expect("a reservation").submit(id, spec(), Terms::default());
    assert_eq!(next(&mut events).await, Some(QueueEvent::Started));
    assert!(queue.standing(id).is_some());
    queue.cancel(id, CancelCause::Request);
    steps.send(()).expect("an engine");
    while next(&mut events).await.is_some_and(|event| event != QueueEvent::Canceled) {}
    until("it has left", || queue.standing(id).is_none()).await;
    queue.close();
}

#[tokio::test]
async fn a_reservation_is_held_until_the_listener_is_done() {
    let (queue, steps) = gated().await;
    let mut all: Vec<JobEvents> = (0..4)
        .map(|_| {
            queue.reserve(KeyId::generate()).expect("a reservation").submit(JobId::generate(), spec(), Terms::default())
        })
        .collect();
    drop(steps);
    for events in &mut all {
        while next(events).await.is_some() {}
    }
    assert!(queue.reserve(KeyId::generate()).is_err(), "four outcomes are not yet stored");
    all.pop();
    until("a reservation is free", || queue.reserve(KeyId::generate()).is_ok()).await;
    queue.close();
}

#[tokio::test]
async fn no_owner_holds_more_reservations_than_are_left_for_others() {
    let (queue, _steps) = gated().await;
    let (greedy, modest) = (KeyId::generate(), KeyId::generate());
    let first = queue.reserve(greedy).expect("a reservation");
    let second = queue.reserve(greedy).expect("a reservation");
    assert!(matches!(queue.reserve(greedy), Err(ReserveError::Full { .. })));
    let others =
        [queue.reserve(modest).expect("a reservation"), queue.reserve(KeyId::generate()).expect("the last one")];
    drop(first);
    let accepted_before = queue.reserve_again(modest).expect("the share was checked before");
    assert!(queue.reserve_again(greedy).is_err(), "the queue is full");
    drop(others);
    let again = queue.reserve(greedy).expect("a reservation");
    drop((second, accepted_before, again));
    queue.close();
}

/// How many images are running.
fn running(queue: &Queue) -> usize {
    queue.load().running
}

#[tokio::test]
async fn two_engines_serve_one_queue_and_a_dead_third_does_no_harm() {
    let (gate, steps) = gate();
    let shut = Arc::clone(&gate);
    let sound = move || Ok(gated_engine(&gate));
    let dead = || Err(EngineError::Fatal("the device fell off the bus".into()));
    let factories: Vec<EngineFactory> = vec![Box::new(sound.clone()), Box::new(dead), Box::new(sound)];
    let queue = Queue::start(&settings(), factories).expect("threads");
    until("two are ready", || queue.engines() == (2, 3)).await;
    shut.is_shut.store(true, Ordering::Relaxed);
    let submit =
        || queue.reserve(KeyId::generate()).expect("a reservation").submit(JobId::generate(), spec(), Terms::default());
    let (mut first, mut second) = (submit(), submit());
    for events in [&mut first, &mut second] {
        assert_eq!(next(events).await, Some(QueueEvent::Started), "one each, before any step");
    }
    assert_eq!(running(&queue), 2);
    drop(steps);
    for events in [&mut first, &mut second] {
        while next(events).await.is_some_and(|event| !matches!(event, QueueEvent::Finished(_))) {}
    }
    assert_eq!(*queue.state().borrow(), EngineState::Ready, "with one of three dead");
    queue.close();
}

#[tokio::test]
async fn a_deadline_ends_a_pending_job_and_a_running_one() {
    let (queue, steps) = gated().await;
    let terms = Terms { deadline: Some(Instant::now() + Duration::from_millis(100)), ..Terms::default() };
    let submit =
        |terms| queue.reserve(KeyId::generate()).expect("a reservation").submit(JobId::generate(), spec(), terms);
    let mut running = submit(terms);
    assert_eq!(next(&mut running).await, Some(QueueEvent::Started));
    let mut waits = submit(terms);
    let mut patient = submit(Terms::default());
    tokio::time::sleep(Duration::from_millis(120)).await;
    steps.send(()).expect("an engine");
    for events in [&mut running, &mut waits] {
        let failure = loop {
            match next(events).await {
                Some(QueueEvent::Failed(failure)) => break failure,
                Some(QueueEvent::Started | QueueEvent::Step { .. }) => {}
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(failure.code, JobFailure::DEADLINE_PASSED);
    }
    drop(steps);
    while next(&mut patient).await.is_some_and(|event| !matches!(event, QueueEvent::Finished(_))) {}
    queue.close();
}

#[tokio::test]
async fn a_list_of_jobs_takes_one_forecast_and_a_new_job_is_in_the_next() {
    let (queue, _steps) = gated().await;
    let reservation = || queue.reserve_again(KeyId::generate()).expect("a reservation");
    let first = JobId::generate();
    let mut events = reservation().submit(first, spec(), Terms::default());
    assert_eq!(next(&mut events).await, Some(QueueEvent::Started));
    let is_shared = (0..20).any(|_| {
        let (one, other) = (queue.shared.forecast(), queue.shared.forecast());
        Arc::ptr_eq(&one, &other)
    });
    assert!(is_shared, "computed again for each job of a list");
    let second = JobId::generate();
    let _waiting = reservation().submit(second, spec(), Terms::default());
    assert!(queue.standing(first).is_some() && queue.standing(second).is_some());
    queue.cancel(second, CancelCause::Request);
    until("it has left", || queue.standing(second).is_none()).await;
    queue.close();
}
