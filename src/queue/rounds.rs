//! The order of the line: round robin between owners, first come, first served within one owner's jobs.
//!
//! A job's round is one more than that of its owner's last waiting job, or than the round that is being admitted. So a
//! newcomer waits for one job of everybody else at most, however many somebody has put in; and who comes again at once
//! is in the next round, behind those who have waited. Nothing is remembered of owners who have no job here.

use std::collections::VecDeque;

use crate::domain::ids::KeyId;

struct Turn<T> {
    owner: KeyId,
    round: u64,
    job: T,
}

/// Those who wait, in the order in which they are admitted.
pub(super) struct Rounds<T> {
    /// In order of their rounds; of arrival within one round.
    turns: VecDeque<Turn<T>>,
    /// The round of who was admitted last.
    round: u64,
}

impl<T> Default for Rounds<T> {
    fn default() -> Self {
        Self { turns: VecDeque::new(), round: 0 }
    }
}

impl<T> Rounds<T> {
    pub(super) fn push(&mut self, owner: KeyId, job: T) {
        let own = self.turns.iter().rev().find(|turn| turn.owner == owner);
        let round = own.map_or(self.round, |turn| turn.round) + 1;
        let place = self.turns.partition_point(|turn| turn.round <= round);
        self.turns.insert(place, Turn { owner, round, job });
    }

    /// Puts a job that was admitted before everybody else again.
    pub(super) fn put_back(&mut self, owner: KeyId, job: T) {
        self.turns.push_front(Turn { owner, round: self.round, job });
    }

    pub(super) fn first(&self) -> Option<&T> {
        self.turns.front().map(|turn| &turn.job)
    }

    /// Takes the first one, if it is the one that is meant.
    pub(super) fn pop_first_if(&mut self, is_meant: impl FnOnce(&T) -> bool) -> Option<T> {
        let turn = self.turns.pop_front_if(|turn| is_meant(&turn.job))?;
        self.round = turn.round;
        Some(turn.job)
    }

    pub(super) fn remove(&mut self, place: usize) -> Option<T> {
        self.turns.remove(place).map(|turn| turn.job)
    }

    /// Takes all of them.
    pub(super) fn take(&mut self) -> Vec<T> {
        self.turns.drain(..).map(|turn| turn.job).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.turns.iter().map(|turn| &turn.job)
    }

    pub(super) fn len(&self) -> usize {
        self.turns.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        rounds: Rounds<char>,
        owners: [KeyId; 3],
    }

    impl Bench {
        fn new() -> Self {
            Self { rounds: Rounds::default(), owners: std::array::from_fn(|_| KeyId::generate()) }
        }

        fn push(&mut self, owner: usize, jobs: &str) {
            jobs.chars().for_each(|job| self.rounds.push(self.owners[owner], job));
        }

        fn admit(&mut self, jobs: usize) -> String {
            (0..jobs).filter_map(|_| self.rounds.pop_first_if(|_| true)).collect()
        }
    }

    #[test]
    fn one_owner_is_served_in_order() {
        let mut bench = Bench::new();
        bench.push(0, "abc");
        assert_eq!(bench.admit(9), "abc");
    }

    #[test]
    fn owners_take_turns_however_many_jobs_they_have() {
        let mut bench = Bench::new();
        bench.push(0, "abcd");
        bench.push(1, "xy");
        bench.push(2, "m");
        assert_eq!(bench.admit(9), "axmbycd");
    }

    #[test]
    fn a_newcomer_waits_for_one_job_of_everybody_else_at_most() {
        let mut bench = Bench::new();
        bench.push(0, "abcd");
        assert_eq!(bench.admit(2), "ab");
        bench.push(1, "x");
        assert_eq!(bench.admit(9), "cxd");
    }

    #[test]
    fn who_comes_again_at_once_does_not_starve_those_who_wait() {
        let mut bench = Bench::new();
        bench.push(0, "abcd");
        let mut order = String::new();
        for job in "wxyz".chars() {
            bench.push(1, &job.to_string());
            order += &bench.admit(2);
        }
        assert_eq!(order, "awbxcydz");
    }

    #[test]
    fn who_is_put_back_is_first_again() {
        let mut bench = Bench::new();
        bench.push(0, "ab");
        bench.push(1, "x");
        assert_eq!(bench.admit(1), "a");
        bench.rounds.put_back(bench.owners[0], 'a');
        bench.push(2, "m");
        assert_eq!(bench.admit(9), "axbm");
    }

    #[test]
    fn who_leaves_the_line_gives_the_turn_back() {
        let mut bench = Bench::new();
        bench.push(0, "abc");
        bench.push(1, "xy");
        assert_eq!(bench.rounds.remove(0), Some('a'));
        assert_eq!(bench.rounds.iter().collect::<String>(), "xbyc");
        bench.rounds.take();
        bench.push(0, "d");
        bench.push(1, "z");
        assert_eq!(bench.admit(9), "dz");
    }
}
