//! Tensors that a pickle refers to in ways that give them no name: in the arguments of a module's own `__reduce__`, or in a
//! state of its own.

use std::collections::HashSet;

use super::value::{Node, Pickle, Value};

/// The nodes from which a storage is reached: those that have its tensor in them, however deep. A search from the storages
/// on ends at `read`, whose tensors have names, and at optimizers.
pub(super) fn reaching(pickle: &Pickle, read: &HashSet<u32>) -> HashSet<u32> {
    let holders = holders(pickle);
    let mut reached = HashSet::new();
    let mut next: Vec<u32> = storages(pickle).collect();
    while let Some(inner) = next.pop() {
        let from = holders.partition_point(|(held, _)| *held < inner);
        let of_inner = holders[from..]
            .iter()
            .take_while(|(held, _)| *held == inner);
        for (_, holder) in of_inner {
            let ends = read.contains(holder) || pickle.is_optimizer(Value::Node(*holder));
            if !ends && reached.insert(*holder) {
                next.push(*holder);
            }
        }
    }
    reached
}

/// Every node that another one holds, with the one that does, in order.
fn holders(pickle: &Pickle) -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    for (i, node) in (0..).zip(&pickle.nodes) {
        let mut holds = |value: &Value| {
            if let Value::Node(inner) = value {
                found.push((*inner, i));
            }
        };
        let mut all = |values: &[Value]| values.iter().for_each(&mut holds);
        match node {
            Node::Tuple(values) => all(values),
            Node::List(values) | Node::Set(values) => all(values),
            Node::Dict(items) => items.iter().for_each(|(k, v)| all(&[*k, *v])),
            Node::Call(call) => {
                all(&[call.callee, call.arguments]);
                all(&call.list);
                call.items.iter().for_each(|(k, v)| all(&[*k, *v]));
                all(call.state.as_slice());
            }
            _ => {}
        }
    }
    found.sort_unstable();
    found
}

/// What lies outside of the pickle, but for the sources of classes.
fn storages(pickle: &Pickle) -> impl Iterator<Item = u32> {
    let is_storage = |node: &Node| match node {
        Node::Persistent(id) => {
            let kind = pickle.sequence(*id).and_then(|id| id.first());
            kind.is_none_or(|kind| pickle.text(*kind) != Some("module"))
        }
        _ => false,
    };
    (0..)
        .zip(&pickle.nodes)
        .filter(move |(_, node)| is_storage(node))
        .map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use super::reaching;
    use crate::tensor::pytorch::value::{Node, Pickle, Value};

    fn reached(nodes: Vec<Node>, read: &[u32]) -> Vec<u32> {
        let root = Value::None;
        let pickle = Pickle { nodes, root };
        let reached = reaching(&pickle, &read.iter().copied().collect::<HashSet<u32>>());
        let sorted: BTreeSet<u32> = reached.into_iter().collect();
        sorted.into_iter().collect()
    }

    fn storage(kind: &str) -> [Node; 3] {
        [
            Node::Text(kind.into()),
            Node::Tuple(Box::new([Value::Node(0)])),
            Node::Persistent(Value::Node(1)),
        ]
    }

    /// A storage; a list that has it; a list that has that one, which has it in turn; and one without.
    fn lists(kind: &str) -> Vec<Node> {
        let lists = [
            Node::List(vec![Value::Node(2), Value::Node(4)]),
            Node::List(vec![Value::Node(3)]),
            Node::List(vec![Value::Int(1), Value::Node(0)]),
        ];
        storage(kind).into_iter().chain(lists).collect()
    }

    #[test]
    fn what_holds_a_storage_is_found_unless_it_was_read() {
        assert_eq!(reached(lists("storage"), &[]), [3, 4]);
        assert_eq!(reached(lists("storage"), &[3]), [0; 0]);
        assert_eq!(reached(lists("storage"), &[4]), [3]);
        // The source of a class is outside of the pickle, too.
        assert_eq!(reached(lists("module"), &[]), [0; 0]);
    }

    #[test]
    fn an_optimizer_ends_the_search() {
        let mut nodes = lists("storage");
        let last = nodes.len() as u32;
        nodes.push(Node::Text("param_groups".into()));
        nodes.push(Node::Dict(vec![(Value::Node(last), Value::Node(4))]));
        nodes.push(Node::List(vec![Value::Node(last + 1)]));
        assert_eq!(reached(nodes, &[]), [3, 4]);
    }
}
