//! Which server takes the next request: pure schedulers over members, weights and a health view.

/// How a server is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Smooth weighted round robin.
    RoundRobin,
    /// Fewest requests in flight for the weight.
    LeastConn,
    /// By client address.
    IpHash,
    /// Consistent hash over a chosen key, by a Maglev table.
    Maglev,
    /// The better of two random picks.
    RandomTwo,
}
