//! The wish to end: asked for once, seen everywhere.

use std::future;
use std::sync::Arc;

use tokio::sync::watch;

/// Tells that the process, or a part of it, shall end. Clones see the same wish.
#[derive(Clone, Debug)]
pub struct Shutdown {
    wish: watch::Receiver<bool>,
    /// The end of which is the end of this, too.
    whole: Option<Arc<Shutdown>>,
}

/// Asks for the end; dropping it asks too.
#[derive(Debug)]
pub struct Trigger {
    wish: watch::Sender<bool>,
}

impl Shutdown {
    pub fn new() -> (Trigger, Shutdown) {
        let (sender, receiver) = watch::channel(false);
        (Trigger { wish: sender }, Shutdown { wish: receiver, whole: None })
    }

    /// The end of a part, which comes with the end of the whole or sooner.
    pub fn part(&self) -> (Trigger, Shutdown) {
        let (trigger, part) = Shutdown::new();
        (trigger, Shutdown { whole: Some(Arc::new(self.clone())), ..part })
    }

    pub fn is_requested(&self) -> bool {
        let is_asked = *self.wish.borrow() || self.wish.has_changed().is_err();
        is_asked || self.whole.as_ref().is_some_and(|whole| whole.is_requested())
    }

    /// Returns once the end is asked for. Cancelling loses nothing.
    pub async fn requested(&self) {
        let mut wish = self.wish.clone();
        let whole = async {
            match &self.whole {
                Some(whole) => Box::pin(whole.requested()).await,
                None => future::pending().await,
            }
        };
        tokio::select! {
            // An error means that the trigger is gone, which asks for the end as well.
            _ = wish.wait_for(|asked| *asked) => {}
            () = whole => {}
        }
    }
}

impl Trigger {
    pub fn request(&self) {
        self.wish.send_replace(true);
    }
}
