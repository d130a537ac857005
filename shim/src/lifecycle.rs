//! Where a process is in its life. containerd must hear of an exit after it has heard of the start, and once.

use sealock_sandbox::Exit;

/// A process's state; of an exec's process all but [`Phase::Paused`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It waits to execute.
    Created,
    /// The agent is letting it.
    Starting,
    /// It runs.
    Running,
    /// It is frozen.
    Paused,
    /// It has ended.
    Stopped,
}

/// What containerd may ask of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// To run.
    Start,
    /// To be forgotten.
    Delete,
    /// To be frozen.
    Pause,
    /// To be thawed.
    Resume,
    /// To get other limits.
    Update,
    /// To get a process beside it.
    Exec,
}

impl Request {
    /// Why it can't be carried out in this phase: in the words of containerd's own shim for runc.
    #[must_use]
    pub fn refusal(self, phase: Phase) -> Option<&'static str> {
        use Phase::{Created, Paused, Running, Starting, Stopped};
        Some(match (self, phase) {
            (Self::Start, Starting | Running) => "cannot start a running process",
            (Self::Start, Paused) => "cannot start a paused process",
            (Self::Start, Stopped) => "cannot start a stopped process",
            (Self::Delete, Starting | Running) => "cannot delete a running process",
            (Self::Delete, Paused) => "cannot delete a paused process",
            (Self::Pause, Created | Starting) => "cannot pause task in created state",
            (Self::Pause, Paused) => "cannot pause a paused container",
            (Self::Pause, Stopped) => "cannot pause a stopped container",
            (Self::Resume, Created | Starting) => "cannot resume task in created state",
            (Self::Resume, Running) => "cannot resume a running process",
            (Self::Resume, Stopped) => "cannot resume a stopped container",
            (Self::Update, Stopped) => "cannot update a stopped container",
            (Self::Exec, Paused) => "cannot exec in a paused state",
            (Self::Exec, Stopped) => "cannot exec in a stopped state",
            (Self::Start | Self::Delete, Created)
            | (Self::Delete, Stopped)
            | (Self::Pause, Running)
            | (Self::Resume, Paused)
            | (Self::Update, Created | Starting | Running | Paused)
            | (Self::Exec, Created | Starting | Running) => return None,
        })
    }
}

/// What is to be published now, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// That memory ran out.
    pub out_of_memory: bool,
    /// The end.
    pub exit: Option<Exit>,
}

/// A process's life so far.
#[derive(Debug)]
pub struct Lifecycle {
    phase: Phase,
    exit: Option<Exit>,
    /// What came while the start was under way.
    kept: Due,
    oom_kills: u64,
}

impl Lifecycle {
    /// A created process's.
    #[must_use]
    pub fn new() -> Self {
        Self {
            phase: Phase::Created,
            exit: None,
            kept: Due::default(),
            oom_kills: 0,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How it ended, once that is published.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        self.exit
    }

    /// The start begins.
    ///
    /// # Errors
    /// Not in this phase; says why.
    pub fn begin_start(&mut self) -> Result<(), &'static str> {
        if let Some(refusal) = Request::Start.refusal(self.phase) {
            return Err(refusal);
        }
        self.phase = Phase::Starting;
        Ok(())
    }

    /// The start has succeeded, and been published, or it has failed.
    pub fn finish_start(&mut self, succeeded: bool) -> Due {
        self.phase = if succeeded { Phase::Running } else { Phase::Created };
        let due = std::mem::take(&mut self.kept);
        if let Some(exit) = due.exit {
            self.end(exit);
        }
        due
    }

    /// It has been frozen.
    pub fn paused(&mut self) {
        if self.phase == Phase::Running {
            self.phase = Phase::Paused;
        }
    }

    /// It has been thawed.
    pub fn resumed(&mut self) {
        if self.phase == Phase::Paused {
            self.phase = Phase::Running;
        }
    }

    /// So many processes have been killed for lack of memory.
    pub fn out_of_memory(&mut self, kills: u64) -> Due {
        if kills <= self.oom_kills || self.phase == Phase::Stopped {
            return Due::default();
        }
        self.oom_kills = kills;
        if self.phase == Phase::Starting {
            self.kept.out_of_memory = true;
            return Due::default();
        }
        Due {
            out_of_memory: true,
            exit: None,
        }
    }

    /// It has ended.
    pub fn exited(&mut self, exit: Exit) -> Due {
        let Due { out_of_memory, .. } = self.out_of_memory(exit.oom_kills);
        match self.phase {
            Phase::Created | Phase::Running | Phase::Paused => {
                self.end(exit);
                Due {
                    out_of_memory,
                    exit: Some(exit),
                }
            }
            Phase::Starting => {
                self.kept.exit.get_or_insert(exit);
                Due::default()
            }
            Phase::Stopped => Due::default(),
        }
    }

    fn end(&mut self, exit: Exit) {
        self.phase = Phase::Stopped;
        self.exit = Some(exit);
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    const EXIT: Exit = Exit {
        status: 3,
        at: SystemTime::UNIX_EPOCH,
        oom_kills: 0,
    };

    const NOTHING: Due = Due {
        out_of_memory: false,
        exit: None,
    };

    const EXIT_ALONE: Due = Due {
        out_of_memory: false,
        exit: Some(EXIT),
    };

    #[test]
    fn an_exit_during_the_start_is_published_after_it_and_once() {
        let mut life = Lifecycle::new();
        life.begin_start().unwrap();
        assert_eq!(life.exited(EXIT), NOTHING);
        assert_eq!(life.phase(), Phase::Starting);
        assert_eq!(life.finish_start(true), EXIT_ALONE);
        assert_eq!((life.phase(), life.exit()), (Phase::Stopped, Some(EXIT)));
        assert_eq!(life.exited(EXIT), NOTHING);
    }

    #[test]
    fn an_exit_after_the_start_is_published_once() {
        let mut life = Lifecycle::new();
        life.begin_start().unwrap();
        assert_eq!(life.finish_start(true), NOTHING);
        assert_eq!(life.phase(), Phase::Running);
        assert_eq!(life.exited(EXIT), EXIT_ALONE);
        assert_eq!(life.exited(EXIT), NOTHING);
    }

    #[test]
    fn a_failed_start_leaves_a_task_that_can_be_deleted() {
        let mut life = Lifecycle::new();
        life.begin_start().unwrap();
        assert_eq!(life.finish_start(false), NOTHING);
        assert_eq!(life.phase(), Phase::Created);
        assert_eq!(life.exited(EXIT), EXIT_ALONE);
    }

    #[test]
    fn a_paused_task_can_be_killed_and_stays_dead() {
        let mut life = Lifecycle::new();
        life.begin_start().unwrap();
        life.finish_start(true);
        life.paused();
        assert_eq!(life.phase(), Phase::Paused);
        assert_eq!(life.exited(EXIT), EXIT_ALONE);
        life.resumed();
        life.paused();
        assert_eq!(life.phase(), Phase::Stopped);
    }

    #[test]
    fn lack_of_memory_is_told_once_for_each_time_and_before_the_exit() {
        let mut life = Lifecycle::new();
        life.begin_start().unwrap();
        assert_eq!(life.out_of_memory(1), NOTHING);
        let told = Due {
            out_of_memory: true,
            exit: None,
        };
        assert_eq!(life.finish_start(true), told);
        assert_eq!(life.out_of_memory(1), NOTHING);
        assert_eq!(life.out_of_memory(2), told);
        let exit = Exit { oom_kills: 2, ..EXIT };
        assert!(!life.exited(exit).out_of_memory);
        assert_eq!(life.out_of_memory(3), NOTHING);

        // The exit knows more than the events so far.
        let mut life = Lifecycle::new();
        life.begin_start().unwrap();
        assert_eq!(life.exited(exit), NOTHING);
        let both = Due {
            out_of_memory: true,
            exit: Some(exit),
        };
        assert_eq!(life.finish_start(true), both);
    }

    #[test]
    fn what_a_phase_does_not_allow_is_refused() {
        use Phase::{Created, Paused, Running, Starting, Stopped};
        for (request, allowed) in [
            (Request::Start, &[Created][..]),
            (Request::Delete, &[Created, Stopped]),
            (Request::Pause, &[Running]),
            (Request::Resume, &[Paused]),
            (Request::Update, &[Created, Starting, Running, Paused]),
            (Request::Exec, &[Created, Starting, Running]),
        ] {
            for phase in [Created, Starting, Running, Paused, Stopped] {
                let refused = request.refusal(phase).is_some();
                assert_eq!(refused, !allowed.contains(&phase), "{request:?} {phase:?}");
            }
        }
    }
}
