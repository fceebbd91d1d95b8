//! The wish to end: asked for once, seen everywhere.

use tokio::sync::watch;

/// Tells that the process shall end. Clones see the same wish.
#[derive(Clone, Debug)]
pub struct Shutdown {
    wish: watch::Receiver<bool>,
}

/// Asks for the end; dropping it asks too.
#[derive(Debug)]
pub struct Trigger {
    wish: watch::Sender<bool>,
}

impl Shutdown {
    pub fn new() -> (Trigger, Shutdown) {
        let (sender, receiver) = watch::channel(false);
        (Trigger { wish: sender }, Shutdown { wish: receiver })
    }

    pub fn is_requested(&self) -> bool {
        *self.wish.borrow() || self.wish.has_changed().is_err()
    }

    /// Returns once the end is asked for. Cancelling loses nothing.
    pub async fn requested(&self) {
        let mut wish = self.wish.clone();
        // An error means that the trigger is gone, which asks for the end as well.
        drop(wish.wait_for(|asked| *asked).await);
    }
}

impl Trigger {
    pub fn request(&self) {
        self.wish.send_replace(true);
    }
}
