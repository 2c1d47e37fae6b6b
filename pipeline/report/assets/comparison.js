// The sections of a comparison's report.

function answerSection() { return null; }
function frontierSection() { return null; }
function traitSection() { return null; }
function proxySection() { return null; }
