//! Traces: jobs in, actions out.

use super::*;

#[test]
fn nothing_to_do_is_idle() {
    let nothing = Bench::new().plan(&LIMITS);
    assert_eq!(nothing, Plan { action: Action::Idle, reason: Reason::NothingToDo });
}

#[test]
fn one_job_is_admitted_stepped_and_finished() {
    assert_eq!(Bench::with(&[(0, 2, 100)]).run(&LIMITS), "+a [a] [a] !a");
}

#[test]
fn small_images_are_batched_and_a_late_one_joins_between_two_steps() {
    let mut bench = Bench::with(&[(0, 3, 100)]);
    assert_eq!((bench.word(&LIMITS), bench.word(&LIMITS)), ("+a".into(), "[a]".into()));
    bench.arrive(1, 2, 200);
    assert_eq!(bench.run(&LIMITS), "+b [ab] [ab] !a !b");
}

#[test]
fn others_pass_a_job_that_waits_for_its_adapters() {
    let mut bench = Bench::with(&[(0, 2, 100), (1, 3, 100)]);
    bench.jobs[0].is_loading = true;
    assert_eq!((bench.word(&LIMITS), bench.word(&LIMITS)), ("+b".into(), "[b]".into()));
    bench.jobs[0].is_loading = false;
    assert_eq!(bench.run(&LIMITS), "+a [ab] [ab] !a !b", "it joins as soon as they are there");
    let mut bench = Bench::with(&[(0, 1, 100)]);
    bench.jobs[0].is_loading = true;
    assert_eq!(bench.word(&LIMITS), ".", "nothing else to do");
}

#[test]
fn images_of_a_request_are_encoded_before_its_first_step() {
    let mut bench = Bench::with(&[(0, 2, 100)]);
    bench.jobs[0].parts_left = 3;
    assert_eq!(bench.run(&LIMITS), "+a ~a ~a ~a [a] [a] !a", "alone, in one go");
}

#[test]
fn others_step_between_the_parts_of_an_encoding() {
    let mut bench = Bench::with(&[(0, 5, 100)]);
    assert_eq!((bench.word(&LIMITS), bench.word(&LIMITS)), ("+a".into(), "[a]".into()));
    bench.arrive(0, 2, 100).parts_left = 4;
    // A fully packed step takes 0.128 s, a part 0.05 s.
    assert_eq!(bench.run(&LIMITS), "+b ~b ~b [a] ~b ~b [ab] [ab] !b [a] !a");
}

#[test]
fn an_encoding_delays_the_steps_of_another_owner_by_no_more_than_a_step() {
    let mut bench = Bench::with(&[(0, 200, 100)]);
    bench.turn(&LIMITS);
    bench.turn(&LIMITS);
    bench.arrive(1, 1, 100).parts_left = 12;
    let (mut stepped, mut longest, mut parts) = (bench.now, 0.0_f64, 0);
    while bench.jobs[1].steps_left > 0 {
        let before = bench.now;
        match bench.turn(&LIMITS) {
            Action::Step(_) => {
                longest = longest.max(before - stepped);
                stepped = bench.now;
            }
            Action::Encode(_) => parts += 1,
            _ => {}
        }
    }
    let step = bench.costs.step_seconds(bench.costs.packed_work());
    assert!(longest <= step + 1e-9, "{longest} s between two steps, of which one takes {step} s");
    assert_eq!(parts, 12);
    assert!(bench.jobs[0].steps_left > 100, "its share comes in time");
}

#[test]
fn an_image_is_encoded_although_what_should_come_first_cannot_be_admitted() {
    let mut bench = Bench::with(&[(0, 1, 100)]);
    bench.jobs[0].parts_left = 2;
    bench.turn(&LIMITS);
    bench.admissions_blocked = true;
    bench.arrive(0, 1, 10).is_suspect = true;
    assert_eq!(bench.run(&LIMITS), "~a ~a [a] !a +b [b] !b");
}

#[test]
fn an_encoding_goes_on_beside_steps_although_what_should_come_first_finds_no_slot() {
    let limits = EngineLimits { images_max: 2, ..LIMITS };
    let mut bench = Bench::with(&[(0, 6, 500), (1, 1, 500)]);
    bench.jobs[1].parts_left = 2;
    for job in &mut bench.jobs {
        job.is_admitted = true;
    }
    // Each is due earlier, and together they fill a step.
    for _ in 0..60 {
        bench.arrive(2, 1, 20);
    }
    let mut words = Vec::new();
    while bench.jobs[1].parts_left > 0 {
        words.push(bench.word(&limits));
        assert!(words.len() < 20, "{words:?}");
    }
    assert!(words.iter().any(|word| word == "[a]"), "{words:?}");
}

#[test]
fn packing_stops_where_it_stops_paying() {
    let mut bench = Bench::with(&[(0, 1, 600), (0, 1, 600)]);
    bench.costs = CostModel::known(0.0, SECONDS_PER_TOKEN, 0.0, 0.0);
    assert_eq!(bench.run(&LIMITS), "+a [a] !a +b [b] !b", "without overhead packing saves nothing");
    let mut bench = Bench::with(&[(0, 1, 600), (0, 1, 600), (0, 1, 600)]);
    // 2 ms per step and a tenth of a microsecond per token: up to 80,000 tokens in one.
    bench.costs = CostModel::known(2e-3, 1e-7, 0.0, 0.0);
    assert_eq!(bench.run(&LIMITS), "+a +b +c [abc] !a !b !c");
    let mut bench = Bench::with(&[(0, 1, 600), (0, 1, 600)]);
    bench.turn(&LIMITS);
    assert_eq!(bench.plan(&LIMITS).reason, Reason::AllStep, "of those admitted");
    bench.jobs[1].is_admitted = true;
    assert_eq!(bench.plan(&LIMITS).reason, Reason::PackingPaysNoMore);
}

#[test]
fn memory_and_slots_bound_a_step() {
    let costs = CostModel::known(1.0, 1e-7, 0.0, 0.0);
    let limits = EngineLimits { step_tokens_max: 1000, ..LIMITS };
    let mut bench = Bench { costs, ..Bench::with(&[(0, 2, 600), (0, 2, 600), (0, 2, 300)]) };
    assert_eq!(bench.run(&limits), "+c +a [ac] [ac] !a !c +b [b] [b] !b");
    let limits = EngineLimits { images_max: 1, ..LIMITS };
    let mut bench = Bench { costs, ..Bench::with(&[(0, 1, 10), (0, 1, 10)]) };
    assert_eq!(bench.run(&limits), "+a [a] !a +b [b] !b");
}

#[test]
fn an_image_larger_than_a_step_runs_alone() {
    let limits = EngineLimits { step_tokens_max: 100, ..LIMITS };
    assert_eq!(Bench::with(&[(0, 1, 500), (0, 1, 10)]).run(&limits), "+b [b] !b +a [a] !a");
}

#[test]
fn a_small_image_passes_a_large_running_one() {
    let mut bench = Bench::with(&[(0, 30, 5000)]);
    for _ in 0..4 {
        bench.turn(&LIMITS);
    }
    bench.arrive(0, 2, 500);
    let words: Vec<String> = (0..4).map(|_| bench.word(&LIMITS)).collect();
    assert_eq!(words.join(" "), "+b [b] [b] !b");
}

#[test]
fn a_step_is_delayed_by_no_more_than_its_own_time() {
    let mut bench = Bench::with(&[(0, 5, 300), (0, 5, 300), (0, 5, 300), (0, 5, 10)]);
    // A fully packed step takes 0.13 s, an admission 0.07 s.
    bench.costs = CostModel::known(OVERHEAD_SECONDS, SECONDS_PER_TOKEN, 0.07, 0.0);
    let words: Vec<String> = (0..6).map(|_| bench.word(&LIMITS)).collect();
    assert_eq!(words.join(" "), "+d [d] +a [ad] +b [abd]");
}

#[test]
fn after_memory_ran_out_no_job_is_admitted_until_one_left() {
    let mut bench = Bench::with(&[(0, 2, 10)]);
    bench.turn(&LIMITS);
    bench.admissions_blocked = true;
    bench.arrive(0, 1, 10);
    assert_eq!(bench.run(&LIMITS), "[a] [a] !a +b [b] !b");
}

#[test]
fn a_suspect_runs_alone() {
    let mut bench = Bench::with(&[(0, 2, 10), (0, 2, 20), (0, 2, 30)]);
    bench.jobs[1].is_suspect = true;
    assert_eq!(bench.run(&LIMITS), "+a +c [ac] [ac] !a !c +b [b] [b] !b");
    let mut bench = Bench::with(&[(0, 2, 10), (0, 2, 20)]);
    bench.jobs[0].is_suspect = true;
    assert_eq!(bench.run(&LIMITS), "+a [a] [a] !a +b [b] [b] !b");
    // A second suspect is not even admitted while the engine holds one.
    let mut bench = Bench::with(&[(0, 9, 900)]);
    bench.jobs[0].is_suspect = true;
    bench.turn(&LIMITS);
    bench.turn(&LIMITS);
    bench.arrive(0, 1, 10).is_suspect = true;
    assert!(matches!(bench.turn(&LIMITS), Action::Step(_)));
}

#[test]
fn pending_jobs_are_left_to_an_idle_engine() {
    let mut bench = Bench::with(&[(0, 2, 10), (0, 2, 10)]);
    bench.others_idle = true;
    assert_eq!(bench.run(&LIMITS), "+a [a] [a] !a +b [b] [b] !b");
}

#[test]
fn priority_decides_among_one_owners_jobs_and_not_between_owners() {
    let mut bench = Bench::with(&[(0, 2, 2000)]);
    bench.arrive(0, 2, 3000).priority = Priority::High;
    assert_eq!(bench.run(&LIMITS), "+b [b] [b] !b +a [a] [a] !a");
    let mut bench = Bench::with(&[(1, 2, 2000)]);
    bench.arrive(0, 2, 3000).priority = Priority::High;
    assert_eq!(bench.run(&LIMITS), "+a [a] [a] !a +b [b] [b] !b");
}

#[test]
fn a_deadline_moves_a_job_forward_and_a_missed_one_moves_it_last() {
    let mut bench = Bench::with(&[(0, 2, 2000)]);
    // 0.8 s of work until 0.9 s.
    bench.arrive(0, 2, 4000).deadline = Some(0.9);
    assert_eq!(bench.run(&LIMITS), "+b [b] [b] !b +a [a] [a] !a");
    let mut bench = Bench::with(&[(0, 2, 2000)]);
    bench.arrive(0, 2, 4000).deadline = Some(0.7);
    assert_eq!(bench.run(&LIMITS), "+a [a] [a] !a +b [b] [b] !b");
}

#[test]
fn an_owner_with_one_image_does_not_wait_behind_a_backlog() {
    let mut bench = Bench::new();
    for _ in 0..20 {
        bench.arrive(0, 4, 2000);
    }
    for _ in 0..40 {
        bench.turn(&LIMITS);
    }
    let before = bench.now;
    let single = bench.arrive(1, 4, 2000).id;
    while bench.job(single).ended.is_none() {
        bench.turn(&LIMITS);
    }
    let alone = 4.0 * bench.costs.step_seconds(2000.0);
    assert!(bench.now - before < 2.1 * alone, "{} s, alone {alone} s", bench.now - before);
}

/// An image of 50 steps beside another owner's endless images of one step: its time relative to running alone, where
/// admitting and decoding each take `non_step_steps` times one of its steps.
fn beside_single_steps(own_tokens: usize, tokens: usize, non_step_steps: f64) -> f64 {
    let mut bench = Bench::new();
    let non_step = non_step_steps * bench.costs.step_seconds(own_tokens as f64);
    bench.costs = CostModel::known(OVERHEAD_SECONDS, SECONDS_PER_TOKEN, non_step, non_step / own_tokens as f64);
    let mut run = |rival: Option<usize>| {
        let begun = bench.now;
        let id = bench.arrive(0, 50, own_tokens).id;
        while bench.job(id).ended.is_none() {
            let open = bench.jobs.iter().filter(|job| job.ended.is_none() && job.id != id).count();
            if let Some(tokens) = rival {
                for _ in open..6 {
                    bench.arrive(1, 1, tokens);
                }
            }
            bench.turn(&LIMITS);
        }
        bench.now - begun
    };
    let alone = run(None);
    run(Some(tokens)) / alone
}

#[test]
fn images_of_one_step_get_no_more_than_their_share_of_time() {
    for own_tokens in [300, 2000] {
        for tokens in [50, 300, 2000] {
            for non_step_steps in [0.1, 1.0, 3.0, 10.0] {
                let ratio = beside_single_steps(own_tokens, tokens, non_step_steps);
                let beside = format!("{own_tokens} tokens beside {tokens}, non-step work of {non_step_steps} steps");
                assert!(ratio < 2.5, "{ratio} times as long as alone: {beside}");
            }
        }
    }
}

#[test]
fn a_key_of_higher_priority_gets_four_times_as_much() {
    let mut bench = Bench::new();
    for owner in [0, 1] {
        for _ in 0..400 {
            bench.arrive(owner, 4, 2000);
        }
    }
    for job in bench.jobs.iter_mut().take(400) {
        job.weight = Priority::High.weight();
    }
    for _ in 0..3000 {
        bench.turn(&LIMITS);
    }
    let done = |owner: KeyId| -> u32 {
        bench.jobs.iter().filter(|job| job.owner == owner).map(|job| job.steps - job.steps_left).sum()
    };
    let ratio = f64::from(done(bench.owners[0])) / f64::from(done(bench.owners[1]));
    assert!((3.8..4.2).contains(&ratio), "{ratio}");
}
