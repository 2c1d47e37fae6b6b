// The texts and tokens of rollouts, as they are needed. A small run carries them in its page. A large one carries only
// what is filtered and sorted by; the rest is in files next to the page, loaded as scripts: from file:// nothing else is.

const TEXTS = ["prompt", "expected", "detail", "completion", "conversation"];

function rowStore(data) {
  const parts = data.files ? data.files.map(([name, first]) => ({ name, first, rows: null, loading: null, failed: false })) : [{ first: 0, rows: data }];
  window.whetstoneRows = (number, rows) => { parts[number].rows = rows; };

  function partOf(i) {
    let low = 0, high = parts.length - 1;
    while (low < high) { const middle = (low + high + 1) >> 1; if (parts[middle].first <= i) low = middle; else high = middle - 1; }
    return parts[low];
  }

  function load(part) {
    part.loading ??= new Promise((done) => {
      const settle = () => { part.failed = !part.rows; node.remove(); done(); };
      const node = h("script", { src: `${data.folder}/${part.name}`, onload: settle, onerror: settle });
      document.head.append(node);
    });
    return part.loading;
  }

  // The rows of a part that was loaded, and where this one is in them and its tokens in theirs; null before.
  function rowsOf(i) {
    const part = partOf(i), rows = part.rows;
    if (!rows) return null;
    if (!rows.starts) {
      rows.starts = new Int32Array(rows.tokens.length + 1);
      for (let n = 0; n < rows.tokens.length; n++) rows.starts[n + 1] = rows.starts[n] + rows.tokens[n];
    }
    return { rows, at: i - part.first, begin: rows.starts[i - part.first], end: rows.starts[i - part.first + 1] };
  }

  return {
    rowsOf,
    failed: (i) => partOf(i).failed,
    text: (column, i) => { const found = rowsOf(i); return found && found.rows.tables[column][found.rows.coded[column][found.at]]; },
    // Loads what these rows are in. false where all is here already.
    need(indices) {
      const absent = [...new Set(indices.map(partOf))].filter((part) => !part.rows && !part.failed);
      return absent.length ? Promise.all(absent.map(load)) : false;
    },
    needAll() {
      const absent = parts.filter((part) => !part.rows && !part.failed);
      return absent.length ? Promise.all(absent.map(load)) : false;
    },
    idle: () => Promise.all(parts.map((part) => part.loading)),
    // i => whether its prompt or its answer holds the text; of what is not loaded, no.
    searcher(text) {
      const hits = new Map();
      const hit = (rows, column) => new Set(rows.tables[column].flatMap((v, n) => (v.toLowerCase().includes(text) ? [n] : [])));
      for (const part of parts) if (part.rows) hits.set(part, ["prompt", "completion"].map((column) => [part.rows.coded[column], hit(part.rows, column)]));
      return (i) => { const part = partOf(i); return (hits.get(part) || []).some(([coded, found]) => found.has(coded[i - part.first])); };
    },
  };
}
