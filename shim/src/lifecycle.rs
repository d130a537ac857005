//! Where a task is in its life. containerd must hear of an exit after it has heard of the start, and once.

use sealock_sandbox::Exit;

/// A task's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its process waits to execute.
    Created,
    /// The agent is letting it.
    Starting,
    /// It runs.
    Running,
    /// It has ended.
    Stopped,
}

/// A task's life so far.
#[derive(Debug)]
pub struct Lifecycle {
    phase: Phase,
    /// An exit that came while the start was under way.
    kept: Option<Exit>,
}

impl Lifecycle {
    /// A created task's.
    #[must_use]
    pub fn new() -> Self {
        Self {
            phase: Phase::Created,
            kept: None,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The start begins.
    ///
    /// # Errors
    /// Not in this state; says why.
    pub fn begin_start(&mut self) -> Result<(), &'static str> {
        match self.phase {
            Phase::Created => {
                self.phase = Phase::Starting;
                Ok(())
            }
            Phase::Starting | Phase::Running => Err("cannot start a running process"),
            Phase::Stopped => Err("cannot start a process that has finished"),
        }
    }

    /// The start has succeeded, and been published, or it has failed. Returns the exit that is to be published now.
    pub fn finish_start(&mut self, succeeded: bool) -> Option<Exit> {
        self.phase = if succeeded { Phase::Running } else { Phase::Created };
        let kept = self.kept.take();
        if kept.is_some() {
            self.phase = Phase::Stopped;
        }
        kept
    }

    /// The process has ended. Returns the exit if it is to be published now.
    pub fn exited(&mut self, exit: Exit) -> Option<Exit> {
        match self.phase {
            Phase::Created | Phase::Running => {
                self.phase = Phase::Stopped;
                Some(exit)
            }
            Phase::Starting => {
                self.kept.get_or_insert(exit);
                None
            }
            Phase::Stopped => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    const EXIT: Exit = Exit {
        status: 3,
        at: SystemTime::UNIX_EPOCH,
    };

    #[test]
    fn an_exit_during_the_start_is_published_after_it_and_once() {
        let mut life = Lifecycle::new();
        life.begin_start().unwrap();
        assert_eq!(life.exited(EXIT), None);
        assert_eq!(life.phase(), Phase::Starting);
        assert_eq!(life.finish_start(true), Some(EXIT));
        assert_eq!(life.phase(), Phase::Stopped);
        assert_eq!(life.exited(EXIT), None);
    }

    #[test]
    fn an_exit_after_the_start_is_published_once() {
        let mut life = Lifecycle::new();
        life.begin_start().unwrap();
        assert_eq!(life.finish_start(true), None);
        assert_eq!(life.phase(), Phase::Running);
        assert_eq!(life.exited(EXIT), Some(EXIT));
        assert_eq!(life.exited(EXIT), None);
    }

    #[test]
    fn a_failed_start_leaves_a_task_that_can_be_deleted() {
        let mut life = Lifecycle::new();
        life.begin_start().unwrap();
        assert_eq!(life.finish_start(false), None);
        assert_eq!(life.phase(), Phase::Created);
        assert_eq!(life.exited(EXIT), Some(EXIT));
    }

    #[test]
    fn a_task_is_started_once() {
        let mut life = Lifecycle::new();
        life.begin_start().unwrap();
        assert!(life.begin_start().is_err());
        life.finish_start(true);
        assert!(life.begin_start().is_err());
        life.exited(EXIT);
        assert!(life.begin_start().is_err());
    }
}
