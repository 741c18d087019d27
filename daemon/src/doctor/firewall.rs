//! What nftables would do to a packet from another host that nobody has seen before. Pure: from `nft -j list ruleset`.
//!
//! A rule that asks for something else than protocol, port and state (who sends, by which card, how often) is not understood: if
//! it accepts, the packet is taken for accepted, and if it drops, for not dropped. So what is told here is dropped for sure.

use serde_json::Value;

/// Chains that jump to each other deeper than this are not followed.
const DEPTH: usize = 16;
/// Families whose rules see what comes in over IPv4.
const FAMILIES: [&str; 2] = ["ip", "inet"];

/// A packet that opens a connection.
#[derive(Debug, Clone, Copy)]
struct Packet {
    /// `tcp` or `udp`.
    protocol: &'static str,
    port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Accept,
    Drop,
    /// The chain says nothing of it.
    Goes,
}

/// Which of the ports that others need are closed: of decisions and bulk, and of migrations.
pub(super) fn closed(ruleset: &Value, port: u16, migrations: std::ops::RangeInclusive<u16>) -> Vec<String> {
    let rules = Ruleset::read(ruleset);
    let drops = |protocol, port| rules.fate(Packet { protocol, port }) == Verdict::Drop;
    let mut closed: Vec<String> = [("UDP", "udp"), ("TCP", "tcp")]
        .into_iter()
        .filter(|(_, protocol)| drops(protocol, port))
        .map(|(name, _)| format!("{name} {port}"))
        .collect();
    let (all, gone) = (migrations.len(), migrations.clone().filter(|port| drops("tcp", *port)).count());
    if gone > 0 {
        let some = if gone < all { format!(", {gone} of them") } else { String::new() };
        closed.push(format!("TCP {}-{}{some}", migrations.start(), migrations.end()));
    }
    closed
}

/// A chain: family, table and name, its hook and policy, its rules in order.
struct Chain<'v> {
    place: [&'v str; 3],
    hook: Option<&'v str>,
    policy: &'v str,
    rules: Vec<&'v [Value]>,
}

struct Ruleset<'v>(Vec<Chain<'v>>);

impl<'v> Ruleset<'v> {
    fn read(ruleset: &'v Value) -> Self {
        let text = |value: &'v Value, key: &str| value[key].as_str().unwrap_or_default();
        let things = ruleset["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut chains: Vec<Chain<'v>> = Vec::new();
        for chain in things.iter().filter_map(|thing| thing.get("chain")) {
            chains.push(Chain {
                place: [text(chain, "family"), text(chain, "table"), text(chain, "name")],
                hook: chain["hook"].as_str(),
                policy: text(chain, "policy"),
                rules: Vec::new(),
            });
        }
        for rule in things.iter().filter_map(|thing| thing.get("rule")) {
            let place = [text(rule, "family"), text(rule, "table"), text(rule, "chain")];
            let expressions = rule["expr"].as_array().map(Vec::as_slice).unwrap_or_default();
            if let Some(chain) = chains.iter_mut().find(|chain| chain.place == place) {
                chain.rules.push(expressions);
            }
        }
        Self(chains)
    }

    /// Every chain on the way in has to let it pass.
    fn fate(&self, packet: Packet) -> Verdict {
        let on_the_way = |chain: &&Chain<'v>| {
            FAMILIES.contains(&chain.place[0]) && matches!(chain.hook, Some("input" | "prerouting"))
        };
        let dropped = self.0.iter().filter(on_the_way).any(|chain| match self.walk(chain, packet, 0) {
            Verdict::Drop => true,
            Verdict::Accept => false,
            Verdict::Goes => chain.policy == "drop",
        });
        if dropped { Verdict::Drop } else { Verdict::Accept }
    }

    fn walk(&self, chain: &Chain<'v>, packet: Packet, depth: usize) -> Verdict {
        for rule in &chain.rules {
            let mut sure = true;
            for expression in *rule {
                match self.step(chain, expression, packet, depth) {
                    Step::Fits => {}
                    Step::Unknown => sure = false,
                    Step::Not => break,
                    Step::Returns if sure => return Verdict::Goes,
                    Step::Ends(Verdict::Accept) => return Verdict::Accept,
                    Step::Ends(Verdict::Drop) if sure => return Verdict::Drop,
                    Step::Ends(_) | Step::Returns => break,
                }
            }
        }
        Verdict::Goes
    }

    fn step(&self, chain: &Chain<'v>, expression: &Value, packet: Packet, depth: usize) -> Step {
        let Some((kind, value)) = expression.as_object().and_then(|object| object.iter().next()) else {
            return Step::Unknown;
        };
        match kind.as_str() {
            "match" => fits(value, packet),
            "accept" => Step::Ends(Verdict::Accept),
            "drop" | "reject" => Step::Ends(Verdict::Drop),
            "return" => Step::Returns,
            "counter" | "log" | "comment" => Step::Fits,
            // What cannot be followed may well let the packet pass.
            "jump" | "goto" if depth >= DEPTH => Step::Ends(Verdict::Accept),
            "jump" | "goto" => {
                let place = [chain.place[0], chain.place[1], value["target"].as_str().unwrap_or_default()];
                let there = self.0.iter().find(|chain| chain.place == place);
                match there.map(|there| self.walk(there, packet, depth + 1)) {
                    Some(Verdict::Goes) if kind == "goto" => Step::Returns,
                    Some(Verdict::Goes) => Step::Fits,
                    Some(verdict) => Step::Ends(verdict),
                    None => Step::Ends(Verdict::Accept),
                }
            }
            // What depends on the state alone has nothing for a packet that is new, unless it names that.
            "vmap" if value["key"]["ct"]["key"] == "state" && !value["data"].to_string().contains("\"new\"") => {
                Step::Not
            }
            // It may well let the packet pass.
            "vmap" | "xt" => Step::Ends(Verdict::Accept),
            _ => Step::Unknown,
        }
    }
}

enum Step {
    Fits,
    Not,
    Unknown,
    Returns,
    Ends(Verdict),
}

/// Whether a comparison holds for a packet.
fn fits(comparison: &Value, packet: Packet) -> Step {
    let (left, right) = (&comparison["left"], &comparison["right"]);
    let found = match (&left["payload"], left["meta"]["key"].as_str(), left["ct"]["key"].as_str()) {
        (_, _, Some("state")) => Some(holds(right, &|one| one.as_str() == Some("new"))),
        (_, Some("l4proto"), _) => Some(is_protocol(right, packet)),
        (_, Some("iif" | "iifname"), _) if right == "lo" => Some(false),
        (payload, None, None) => match (payload["protocol"].as_str(), payload["field"].as_str()) {
            (Some("ip"), Some("protocol")) => Some(is_protocol(right, packet)),
            (Some("ip6" | "icmp" | "icmpv6"), _) => Some(false),
            (Some(protocol @ ("tcp" | "udp" | "th")), Some("dport")) if !right.is_string() => {
                Some((protocol == "th" || protocol == packet.protocol) && holds(right, &|one| has(one, packet.port)))
            }
            (Some(protocol @ ("tcp" | "udp")), _) if protocol != packet.protocol => Some(false),
            _ => None,
        },
        _ => None,
    };
    let negated = comparison["op"] == "!=";
    match found {
        None => Step::Unknown,
        Some(fits) if fits != negated => Step::Fits,
        Some(_) => Step::Not,
    }
}

fn is_protocol(right: &Value, packet: Packet) -> bool {
    holds(right, &|one| one.as_str() == Some(packet.protocol))
}

/// Whether one of what stands there is meant: a value, a list, or a set.
fn holds(right: &Value, one: &dyn Fn(&Value) -> bool) -> bool {
    let many = right.get("set").unwrap_or(right);
    match many.as_array() {
        Some(values) => values.iter().any(one),
        None => one(many),
    }
}

fn has(value: &Value, port: u16) -> bool {
    match value["range"].as_array().map(Vec::as_slice) {
        Some([first, last]) => {
            first.as_u64().is_some_and(|first| first <= u64::from(port))
                && last.as_u64().is_some_and(|last| u64::from(port) <= last)
        }
        _ => value.as_u64() == Some(u64::from(port)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A chain on the way in, with a policy and rules.
    fn input(policy: &str, rules: &[Value]) -> Value {
        let mut things = vec![
            json!({"metainfo": {"version": "1.0.6"}}),
            json!({"chain": {"family": "inet", "table": "filter", "name": "ours"}}),
            json!({"chain": {"family": "inet", "table": "filter", "name": "input", "hook": "input", "policy": policy}}),
        ];
        let rule = |chain: &str, expr: &Value| json!({"rule": {"family": "inet", "table": "filter", "chain": chain, "expr": expr}});
        things.extend(rules.iter().map(|expr| rule("input", expr)));
        things.push(rule("ours", &json!([dport("udp", json!(7465)), {"accept": null}])));
        json!({ "nftables": things })
    }

    fn dport(protocol: &str, right: Value) -> Value {
        json!({"match": {"op": "==", "left": {"payload": {"protocol": protocol, "field": "dport"}}, "right": right}})
    }

    fn said(ruleset: &Value) -> String {
        closed(ruleset, 7465, 49152..=49215).join("; ")
    }

    #[test]
    fn what_is_dropped_for_sure_is_told_and_nothing_else() {
        let state = |states: Value| json!({"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": states}});
        let from = json!({"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "10.0.0.9"}});
        let loopback = json!({"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "lo"}});
        let usual = vec![
            json!([state(json!(["established", "related"])), {"accept": null}]),
            json!([loopback, {"accept": null}]),
            json!([dport("tcp", json!(22)), {"counter": {"packets": 0}}, {"accept": null}]),
        ];
        let with = |more: &[Value]| [&usual[..], more].concat();
        let all = "UDP 7465; TCP 7465; TCP 49152-49215";
        let range = json!({"range": [49152, 49215]});
        for (what, ruleset, wanted) in [
            ("no rules", json!({"nftables": []}), ""),
            ("nothing is dropped", input("accept", &usual), ""),
            ("a host that lets ssh in alone", input("drop", &usual), all),
            (
                "decisions and bulk are let in",
                input("drop", &with(&[json!([dport("th", json!(7465)), {"accept": null}])])),
                "TCP 49152-49215",
            ),
            (
                "all are let in, one by a chain of its own",
                input(
                    "drop",
                    &with(&[
                        json!([{"jump": {"target": "ours"}}]),
                        json!([dport("tcp", json!({"set": [7465, range]})), {"accept": null}]),
                    ]),
                ),
                "",
            ),
            (
                "a rule drops some",
                input("accept", &[json!([dport("tcp", json!({"range": [49200, 50000]})), {"drop": null}])]),
                "TCP 49152-49215, 16 of them",
            ),
            ("one host is dropped", input("accept", &[json!([from, {"drop": null}])]), ""),
            ("one host is let in", input("drop", &[json!([from, {"accept": null}])]), ""),
            ("all but ssh is refused", input("accept", &with(&[json!([{"reject": {"type": "icmp"}}])])), all),
            (
                "the state decides",
                input(
                    "drop",
                    &[
                        json!([{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["established", {"accept": null}]]}}}]),
                    ],
                ),
                all,
            ),
            ("rules of iptables are not understood", input("drop", &[json!([{"xt": null}])]), ""),
            ("nonsense", json!({"nftables": [{"rule": 3}, 7, {"chain": []}]}), ""),
        ] {
            assert_eq!(said(&ruleset), wanted, "{what}");
        }
    }

    #[test]
    fn chains_that_jump_in_a_circle_end() {
        let ruleset = input("drop", &[json!([{"jump": {"target": "input"}}])]);
        assert_eq!(said(&ruleset), "", "a circle is not understood, and then nothing is told");
    }
}
