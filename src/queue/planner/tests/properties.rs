//! Properties that hold for any input.

use proptest::prelude::*;

use super::*;

/// Owner, steps and tokens of a job: from 64×64 to some megapixels.
fn any_job() -> impl Strategy<Value = (usize, u32, usize)> {
    (0..4usize, 1..30u32, prop_oneof![20..200usize, 200..2000usize, 2000..9000usize])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// For any arrivals: each step is within the limits, each image gets its steps and is finished once, and everything
    /// ends.
    #[test]
    fn every_image_is_finished_and_no_limit_is_exceeded(
        jobs in prop::collection::vec((any_job(), 0..4u32, 0..60usize), 1..40),
        images_max in 1..9usize,
        step_tokens_max in 500..20_000usize,
    ) {
        let limits = EngineLimits { images_max, step_tokens_max };
        let mut bench = Bench::new();
        let mut arrivals = jobs.clone();
        let actions = |((_, steps, _), parts, _): &((usize, u32, usize), u32, usize)| (steps + parts) as usize;
        let actions: usize = jobs.iter().map(actions).sum();
        for turn in 0.. {
            prop_assert!(turn <= 61 + actions + 2 * jobs.len(), "it does not end");
            for ((owner, steps, tokens), parts, _) in arrivals.extract_if(.., |(_, _, at)| *at <= turn) {
                bench.arrive(owner, steps, tokens).parts_left = parts;
            }
            let before: Vec<Job> = bench.jobs.clone();
            match bench.turn(&limits) {
                Action::Idle => {
                    prop_assert!(bench.jobs.iter().all(|job| job.ended.is_some()), "idle although there is work");
                    if arrivals.is_empty() {
                        break;
                    }
                }
                Action::Admit(_) => {
                    let held = bench.jobs.iter().filter(|job| job.is_admitted && job.ended.is_none()).count();
                    prop_assert!(held <= images_max);
                }
                Action::Encode(id) => {
                    let job = before.iter().find(|job| job.id == id).expect("known");
                    prop_assert!(job.is_admitted && job.parts_left > 0);
                }
                Action::Step(ids) => {
                    let chosen: Vec<&Job> = before.iter().filter(|job| ids.contains(&job.id)).collect();
                    let tokens: usize = chosen.iter().map(|job| job.tokens).sum();
                    prop_assert_eq!(chosen.len(), ids.len());
                    let is_ready = |job: &&Job| job.is_admitted && job.parts_left == 0 && job.steps_left > 0;
                    prop_assert!(chosen.iter().all(is_ready));
                    prop_assert!(chosen.len() == 1 || (tokens <= step_tokens_max && chosen.len() <= images_max));
                }
                Action::Finish(id) => {
                    let job = before.iter().find(|job| job.id == id).expect("known");
                    prop_assert!(job.is_admitted && job.steps_left == 0 && job.ended.is_none());
                }
            }
        }
    }

    /// Two owners that always have jobs get the same engine time, whatever they ask for: never further apart than the
    /// fairness window on either side, and what cannot be divided. Two things are not charged to the owner that is
    /// ahead. A step in which every ready image takes part costs nobody anything, however different their images. And
    /// while others run, its admissions and decodings last no longer than they have stepped.
    #[test]
    fn owners_get_the_same(
        kinds in prop::array::uniform2(prop::collection::vec(any_job(), 1..6)),
        turns in 200..1500usize,
        admit_seconds in 0.0..0.5,
        finish_steps in 0.0..4.0,
    ) {
        let costs = CostModel::known(
            OVERHEAD_SECONDS, SECONDS_PER_TOKEN, admit_seconds, finish_steps * SECONDS_PER_TOKEN,
        );
        let mut bench = Bench { costs, ..Bench::new() };
        let [one, other] = [bench.owners[0], bench.owners[1]];
        let got = |bench: &Bench, owner| bench.seconds.get(&owner).copied().unwrap_or(0.0);
        let lead = |bench: &Bench| got(bench, one) - got(bench, other);
        let work = |(_, steps, tokens): &(usize, u32, usize)| f64::from(*steps) * *tokens as f64;
        let window = kinds.iter().flatten().map(work).fold(0.0, f64::max) * costs.seconds_per_packed_work();
        // What one owner may hold when the other begins to step, and a step.
        let undivided = 3.0 * (admit_seconds + costs.finish_seconds(9000.0)) + costs.step_seconds(9000.0);
        let mut next = kinds.each_ref().map(|own| own.iter().cycle());
        let (mut uncontested, mut non_step_ahead, mut stepped) = (0.0, 0.0, 0.0);
        for turn in 0..turns {
            for owner in [0, 1] {
                let open = bench.jobs.iter().filter(|job| job.owner == bench.owners[owner] && job.ended.is_none());
                if open.count() < 3 {
                    let (_, steps, tokens) = *next[owner].next().expect("endless");
                    bench.arrive(owner, steps, tokens);
                }
            }
            let is_ready = |job: &&Job| job.ended.is_none() && job.steps_left > 0 && job.is_admitted;
            let ready = bench.jobs.iter().filter(is_ready).count();
            let (now, before) = (bench.now, lead(&bench));
            let action = bench.turn(&LIMITS);
            let gained = lead(&bench) - before;
            match action {
                Action::Step(ids) => {
                    stepped += bench.now - now;
                    uncontested += if ids.len() == ready { gained.abs() } else { 0.0 };
                }
                _ if before * gained > 0.0 && before.abs() > window => non_step_ahead += bench.now - now,
                _ => {}
            }
            let apart = lead(&bench).abs();
            let drift = 2.0 * window + undivided;
            let bound = drift + uncontested + non_step_ahead;
            prop_assert!(apart <= bound, "{apart} s apart after {turn} turns, bound {bound} s");
            let bound = undivided + stepped;
            prop_assert!(non_step_ahead <= bound, "{non_step_ahead} s of non-step work ahead, bound {bound} s");
        }
    }

    /// A large image is passed by small ones only for a bounded time, even when its owner never stops asking for small
    /// ones and others have more than enough jobs. The bound: until it is due it may be passed; then only jobs that
    /// were there already go first, and it has its owner's share of the engine.
    #[test]
    fn the_wait_is_bounded(
        steps in 2..20u32,
        tokens in 2000..9000usize,
        rivals in 1..4usize,
        small in 20..1500usize,
        backlog in 1..6usize,
        admit_seconds in 0.0..0.5,
        finish_steps in 0.0..4.0,
    ) {
        let costs = CostModel::known(
            OVERHEAD_SECONDS, SECONDS_PER_TOKEN, admit_seconds, finish_steps * SECONDS_PER_TOKEN,
        );
        let mut bench = Bench { costs, ..Bench::new() };
        let large = bench.arrive(0, steps, tokens).id;
        let due = PATIENCE * f64::from(steps) * costs.step_seconds(tokens as f64);
        let engine_seconds = |steps: u32, tokens: usize| {
            let tokens = tokens as f64;
            f64::from(steps) * costs.step_seconds(tokens) + costs.admit_seconds() + costs.finish_seconds(tokens)
        };
        let (alone, small_seconds) = (engine_seconds(steps, tokens), engine_seconds(4, small));
        let behind_it = alone + backlog as f64 * small_seconds;
        // Two windows: how far its owner may be behind when it is due, and how far the others may get ahead.
        let bound = due + rivals as f64 * (behind_it + 2.0 * alone) + behind_it + 1.0;
        while bench.job(large).ended.is_none() {
            prop_assert!(bench.now <= bound, "not finished after {} s, bound {bound} s", bench.now);
            for owner in 0..rivals {
                let owner_id = bench.owners[owner];
                let open = bench.jobs.iter().filter(|job| job.owner == owner_id && job.ended.is_none());
                for _ in open.count()..=backlog {
                    bench.arrive(owner, 4, small);
                }
            }
            bench.jobs.retain(|job| job.ended.is_none());
            bench.turn(&LIMITS);
            if bench.jobs.iter().all(|job| job.id != large) {
                break;
            }
        }
    }
}
