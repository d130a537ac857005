//! The host's side of a pod: launch, share, supervise, clean up.
