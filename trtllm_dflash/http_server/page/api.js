// The server's endpoints: what it serves, whether it is there, and the stream of an answer.

const MAX_EVENT = 1 << 22; // characters; an event of a stream has some hundred

/** An answer that the server refused, in its own words. */
export class Refusal extends Error {
  constructor(status, message, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** A connection that could not be made, or that ended before its answer did. */
export class ConnectionLost extends Error {}

// In memory alone: never in localStorage, where every script of this origin could read it later.
let apiKey = "";

/** Send this key from now on; an empty one sends none. */
export function useApiKey(key) {
  apiKey = key.trim();
}

function headers() {
  return apiKey ? { Authorization: `Bearer ${apiKey}` } : {};
}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", credentials: "omit", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ConnectionLost("The server cannot be reached.");
  }
  if (!response.ok) throw await refusalOf(response);
  return response;
}

async function refusalOf(response) {
  let message = `The server answered with status ${response.status}.`;
  try {
    const body = await response.json();
    if (typeof body.error?.message === "string") message = body.error.message;
  } catch {
    // No JSON: a proxy answered, and the status says all that is known.
  }
  return new Refusal(response.status, message, response.headers.get("Retry-After"));
}

/** Return the models that are served. */
export async function fetchModels() {
  const body = await (await call("/v1/models", { headers: headers() })).json();
  return Array.isArray(body.data) ? body.data : [];
}

/** Return nothing if requests are taken, else throw. */
export async function checkReady() {
  await call("/ready", { signal: AbortSignal.timeout(5000) });
}

/**
 * Send a chat request, and give each chunk of its stream to `onChunk`.
 *
 * It throws Refusal for an error of the server, before the stream or in it, and ConnectionLost if
 * the stream ends without its end.
 */
export async function streamChat(body, { signal, onChunk }) {
  const response = await call("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers() },
    body: JSON.stringify(body),
    signal,
  });
  for await (const data of eventsOf(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refusal(chunk.error.code ?? 500, String(chunk.error.message));
    onChunk(chunk);
  }
  throw new ConnectionLost("The server went away in the middle of the answer.");
}

/** Yield the data of each server-sent event. */
async function* eventsOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await read(reader);
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      if (rest.length > MAX_EVENT) throw new ConnectionLost("The server sent no events.");
      for (const line of lines) {
        if (line.startsWith("data:")) yield line.slice(5).trim();
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ConnectionLost("The server went away in the middle of the answer.");
  }
}
