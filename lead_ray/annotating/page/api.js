// Requests, and the queue of edits that the server has not confirmed yet.
//
// The queue lies in the browser's storage until the server has answered that an edit is on its disk. So neither a
// server that was killed nor a tab that was closed loses a click: the edits are sent again, under the same names, and
// the server knows those that it has.

const base = new URL(".", location.href);
const storage = `lead-ray ${base.pathname} edits `;

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const address = (path) => new URL(path, base).href;

export async function ask(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(address(path), options);
  const content = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  if (!response.ok) throw new Refused(content.error, response.status);
  return content;
}

export class Outbox {
  // heard(waiting, reachable): how many edits wait. done(edit, revision): one is on the disk. refused(edit, reason).
  constructor(heard, done, refused) {
    Object.assign(this, { heard, done, refused, sending: false, reachable: true });
    this.edits = [];
    for (const key of Object.keys(localStorage).filter((key) => key.startsWith(storage))) {
      this.edits.push(...JSON.parse(localStorage[key]));
      localStorage.removeItem(key);
    }
    this.key = storage + crypto.randomUUID();
    this.keep();
    this.send();
  }

  add(path, content) {
    const edit = { path, content: { ...content, request: crypto.randomUUID() } };
    this.edits.push(edit);
    this.keep();
    this.send();
    return edit;
  }

  waitsFor(image, point) {
    return this.edits.some(
      ({ content }) => content.image === image && content.points?.some((each) => each.id === point),
    );
  }

  waitsForBox(image) {
    return this.edits.some(({ content }) => content.image === image && "box" in content);
  }

  keep() {
    if (this.edits.length) localStorage[this.key] = JSON.stringify(this.edits);
    else localStorage.removeItem(this.key);
    this.heard(this.edits.length, this.reachable);
  }

  async send() {
    if (this.sending) return;
    this.sending = true;
    while (this.edits.length) {
      const edit = this.edits[0];
      try {
        const { revision } = await ask(edit.path, edit.content);
        this.reachable = true;
        this.edits.shift();
        this.done(edit, revision);
      } catch (error) {
        // A full disk may be emptied and a server started again; an edit that is wrong stays wrong.
        if (error instanceof Refused && error.status !== 507 && error.status !== 403) {
          this.edits.shift();
          this.refused(edit, error.message);
        } else {
          this.reachable = false;
          this.heard(this.edits.length, false);
          await new Promise((resolve) => setTimeout(resolve, 1000));
        }
      }
      this.keep();
    }
    this.sending = false;
  }
}

// Events of the server; again(revision) after every new connection.
export function listen(heard, again) {
  const source = new EventSource(address("events"));
  source.onmessage = (message) => {
    const event = JSON.parse(message.data);
    if (event.kind === "hello") again(event.revision);
    else if (event.kind !== "alive") heard(event);
  };
  return source;
}
