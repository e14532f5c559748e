//! Threads that wait for tasks without sleeping: for work that is over before a sleeping thread wakes up.
//!
//! One token takes some sixty products of ten microseconds. A team takes each task from one word of
//! memory: the number of the job, of its tasks, and of those taken so far.

use std::{
    hint::spin_loop,
    ptr,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering},
};

/// Bits of the number of tasks in a job, and of those taken.
const BITS: u32 = 20;
/// Tasks a job may have.
pub(crate) const MOST: usize = (1 << BITS) - 1;

/// A job: what is done for each index.
struct Job<'a>(&'a (dyn Fn(usize) + Sync));

/// The place where a leader leaves jobs for its followers.
#[derive(Debug, Default)]
pub(crate) struct Team {
    /// Job, tasks, tasks taken, from the upper bits down.
    word: AtomicU64,
    job: AtomicPtr<Job<'static>>,
    finished: AtomicUsize,
    over: AtomicBool,
    /// Whether a job is running: one within another is done by whoever starts it.
    busy: AtomicBool,
}

/// Counts a task as finished, whatever becomes of it: nobody waits for ever.
struct Finish<'a>(&'a AtomicUsize);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

impl Team {
    /// Takes tasks until the team is dissolved.
    pub(crate) fn follow(&self) {
        while !self.over.load(Ordering::Acquire) {
            if !self.take() {
                spin_loop();
            }
        }
    }

    /// Claims a task, if there is one.
    fn claim(&self) -> Option<usize> {
        let word = self.word.load(Ordering::Acquire);
        let mask = MOST as u64;
        let (count, taken) = (word >> BITS & mask, word & mask);
        let claimed = taken < count
            && self.word.compare_exchange(word, word + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        claimed.then_some(taken as usize)
    }

    /// Does one task, if there is one.
    fn take(&self) -> bool {
        let Some(index) = self.claim() else { return false };
        let _finish = Finish(&self.finished);
        // SAFETY: a task of the job in the word was claimed and is not finished, so the leader is still in
        // `lead` and the job on its stack; the pointer was written before the word.
        let job = unsafe { &*self.job.load(Ordering::Acquire) };
        (job.0)(index);
        true
    }

    /// Does `work` for every index in `0..count` with the followers. A job inside a job is not shared.
    pub(crate) fn lead(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        if count == 0 || count > MOST || self.busy.swap(true, Ordering::AcqRel) {
            (0..count).for_each(work);
            return;
        }
        let job = Job(work);
        self.finished.store(0, Ordering::Relaxed);
        self.job.store(ptr::from_ref(&job).cast::<Job<'static>>().cast_mut(), Ordering::Release);
        let number = (self.word.load(Ordering::Relaxed) >> (2 * BITS)).wrapping_add(1);
        self.word.store(number << (2 * BITS) | (count as u64) << BITS, Ordering::Release);
        /// Waits for the tasks that others took, also when one of the leader's own panics.
        struct Wait<'a>(&'a Team, usize);
        impl Drop for Wait<'_> {
            fn drop(&mut self) {
                let Wait(team, count) = *self;
                while team.finished.load(Ordering::Acquire) < count {
                    // After a panic nobody does the rest.
                    match team.claim() {
                        Some(_) => drop(Finish(&team.finished)),
                        None => spin_loop(),
                    }
                }
                team.busy.store(false, Ordering::Release);
            }
        }
        let _wait = Wait(self, count);
        // A claim may fail because another thread came first.
        while (self.word.load(Ordering::Relaxed) & MOST as u64) < count as u64 {
            self.take();
        }
    }

    /// Lets the followers go.
    pub(crate) fn dissolve(&self) {
        self.over.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_of_every_job_is_done_once() {
        let team = Team::default();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| team.follow());
            }
            for round in 0..2000usize {
                let done: Vec<AtomicUsize> = (0..round % 40).map(|_| AtomicUsize::new(0)).collect();
                team.lead(done.len(), &|index| {
                    // A job inside a job.
                    team.lead(2, &|_| {
                        done[index].fetch_add(1, Ordering::Relaxed);
                    });
                });
                assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == 2), "round {round}");
            }
            team.dissolve();
        });
    }

    #[test]
    fn a_panic_reaches_whoever_waits() {
        let team = Team::default();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| team.follow()));
                });
                struct Dissolve<'a>(&'a Team);
                impl Drop for Dissolve<'_> {
                    fn drop(&mut self) {
                        self.0.dissolve();
                    }
                }
                let _dissolve = Dissolve(&team);
                team.lead(64, &|_| panic!("a kernel's own fault"));
            });
        }));
        assert!(outcome.is_err());
    }
}
