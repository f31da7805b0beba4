// A reader of one answer in HTTP/1.1, without sockets (rule 21).

// To read the largest answer takes no more than a few milliseconds, since a host may send it just before the deadline.
// Our own answers have some 2 KB.
const HEAD_BYTES_MAX = 16 * 1024;
const BODY_BYTES_MAX = 64 * 1024;
const CHUNKS_MAX = 1000;
const CHUNK_LINE_MAX = 1024;
const FIRST_LINE = /^HTTP\/1\.([01]) ([0-9]{3})(?: |$)/;
const HEADER_NAME = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;
const EMPTY = Buffer.alloc(0);

/** What came is no answer in HTTP/1.1, or too large. Its text holds nothing of it. */
export class AnswerError extends Error {}

/** Reads one answer. */
export class AnswerReader {
  status = 0;
  body: Buffer = EMPTY;
  /** Whether the connection may be used again, and whether the host said that it will not be. */
  keeps = false;
  saysClose = false;

  private data: Buffer = EMPTY;
  private isHeadRead = false;
  private isChunked = false;
  private length = -1;
  /** Bytes of heads that were read, those of interim answers among them. */
  private passed = 0;
  private readonly chunks: Buffer[] = [];
  private chunkBytes = 0;

  /** Take what was received. Returns whether the answer is whole. Throws AnswerError. */
  feed(received: Buffer): boolean {
    this.data = this.data.length > 0 ? Buffer.concat([this.data, received]) : received;
    while (!this.isHeadRead) {
      const end = this.data.indexOf("\r\n\r\n");
      const size = end < 0 ? this.data.length : end;
      if (this.passed + size > HEAD_BYTES_MAX) throw new AnswerError("the head is too large");
      if (end < 0) return false;
      this.passed += size + 4;
      const head = this.data.toString("latin1", 0, end);
      this.data = this.data.subarray(end + 4);
      this.readHead(head);
    }
    if (this.isChunked) return this.readChunks();
    if (this.length >= 0) {
      if (this.data.length < this.length) return false;
      // Bytes that nobody asked for.
      this.keeps &&= this.data.length === this.length;
      this.body = this.data.subarray(0, this.length);
      return true;
    }
    if (this.data.length > BODY_BYTES_MAX) throw new AnswerError("the body is too large");
    return false;
  }

  /** Note that the connection has ended. Returns whether that made the answer whole. */
  end(): boolean {
    if (!this.isHeadRead || this.isChunked || this.length >= 0) return false;
    this.body = this.data;
    this.keeps = false;
    return true;
  }

  private readHead(head: string): void {
    const [first = "", ...lines] = head.split("\r\n");
    const match = FIRST_LINE.exec(first);
    if (match === null) throw new AnswerError("not an answer in HTTP/1.1");
    this.status = Number(match[2]);
    if (this.status === 101) throw new AnswerError("an upgrade that nobody asked for");
    if (this.status >= 100 && this.status < 200) return;
    this.isHeadRead = true;
    let connection = "";
    for (const line of lines) {
      const colon = line.indexOf(":");
      const name = line.slice(0, colon).toLowerCase();
      if (colon < 1 || !HEADER_NAME.test(name)) throw new AnswerError("a header without a name");
      const value = line.slice(colon + 1).trim();
      if (name === "content-length") {
        this.setLength(value);
      } else if (name === "transfer-encoding") {
        if (value.toLowerCase() !== "chunked" || this.isChunked) {
          throw new AnswerError("a transfer encoding other than chunked");
        }
        this.isChunked = true;
      } else if (name === "connection") {
        connection += `,${value.toLowerCase()}`;
      }
    }
    if (this.isChunked && this.length >= 0) throw new AnswerError("two lengths");
    if (this.status === 204 || this.status === 304) {
      this.length = 0;
      this.isChunked = false;
    }
    const options = connection ? connection.split(",").map((option) => option.trim()) : [];
    this.saysClose = options.includes("close");
    this.keeps = !this.saysClose && (match[1] === "1" || options.includes("keep-alive"));
  }

  private setLength(value: string): void {
    // More digits than these are more than is taken.
    if (!/^[0-9]{1,9}$/.test(value)) throw new AnswerError("a length that is no number, or too large");
    const length = Number(value);
    if (this.length >= 0 && this.length !== length) throw new AnswerError("two lengths");
    if (length > BODY_BYTES_MAX) throw new AnswerError("the body is too large");
    this.length = length;
  }

  private readChunks(): boolean {
    for (;;) {
      const lineEnd = this.data.indexOf("\r\n");
      if (lineEnd < 0) {
        if (this.data.length > CHUNK_LINE_MAX) throw new AnswerError("a chunk without a size");
        return false;
      }
      const digits = (this.data.toString("latin1", 0, lineEnd).split(";", 1)[0] ?? "").trim();
      if (!/^[0-9a-fA-F]{1,8}$/.test(digits)) throw new AnswerError("a chunk without a size");
      const size = Number.parseInt(digits, 16);
      if (lineEnd > CHUNK_LINE_MAX || this.chunkBytes + size > BODY_BYTES_MAX)
        throw new AnswerError("the body is too large");
      if (size === 0) return this.readTrailers(lineEnd + 2);
      const end = lineEnd + 2 + size;
      if (this.data.length < end + 2) return false;
      if (this.data.toString("latin1", end, end + 2) !== "\r\n") throw new AnswerError("a chunk longer than its size");
      if (this.chunks.push(this.data.subarray(lineEnd + 2, end)) > CHUNKS_MAX) throw new AnswerError("too many chunks");
      this.chunkBytes += size;
      this.data = this.data.subarray(end + 2);
    }
  }

  private readTrailers(begin: number): boolean {
    const rest = this.data.subarray(begin);
    let size = 2;
    if (rest.toString("latin1", 0, 2) !== "\r\n") {
      const end = rest.indexOf("\r\n\r\n");
      if ((end < 0 ? rest.length : end) > HEAD_BYTES_MAX) throw new AnswerError("the trailers are too large");
      if (end < 0) return false;
      size = end + 4;
    }
    this.keeps &&= size === rest.length;
    this.body = Buffer.concat(this.chunks);
    return true;
  }
}
