//! Another configuration for the running thread: instances that it does not change are not touched, those
//! that can take it over go on, and only the others resign and begin anew.

use std::mem;

use super::config;
use super::engine::Engine;
use super::instance::Instance;

impl Engine {
    /// Puts `new` in force.
    ///
    /// # Errors
    /// When a thread for scripts or files cannot be made; nothing has changed then.
    pub(super) fn reload(&mut self, new: config::Ha) -> Result<(), String> {
        self.sources
            .renew(&new, &self.wake)
            .map_err(|error| format!("cannot start a check script: {error}"))?;
        let now = self.clock.now();
        self.shard_timeout = new.shard_timeout;
        self.end_all_but(&new);
        let mut kept = mem::take(&mut self.instances);
        // Actions of instances that go on, by their new place.
        let mut todo = Vec::new();
        for (place, config) in new.instances.iter().enumerate() {
            let known = kept.iter().position(|one| one.config.name == config.name);
            let instance = match known {
                Some(known) => {
                    let (mut instance, mut out) = (kept.swap_remove(known), Vec::new());
                    instance.renew_config(config.clone(), now, &mut out);
                    todo.push((self.instances.len(), out));
                    Some(instance)
                }
                None => Instance::new(config.clone(), new.grouped(place)),
            };
            self.instances.extend(instance);
        }
        self.groups = new.groups;
        for (place, mut out) in todo {
            self.carry_out(place, &mut out, now);
        }
        // What is known of this host's health comes before the first state of those that are new.
        self.stand(now);
        self.look(now);
        Ok(())
    }

    /// Those that go, or begin anew, resign and let go of their addresses.
    fn end_all_but(&mut self, new: &config::Ha) {
        let now = self.clock.now();
        for place in (0..self.instances.len()).rev() {
            let continues = |instance: &Instance| {
                let mut configs = new.instances.iter().enumerate();
                configs.any(|(place, config)| {
                    config.name == instance.config.name
                        && instance.continues(config, new.grouped(place))
                })
            };
            if continues(&self.instances[place]) {
                continue;
            }
            let mut out = Vec::new();
            self.instances[place].router.shutdown(now, &mut out);
            self.carry_out(place, &mut out, now);
            let mut ended = self.instances.remove(place);
            ended.clean_up(&mut self.network, now);
        }
        // Their places are those of the new configuration only once that is in force.
        self.groups.clear();
    }
}
