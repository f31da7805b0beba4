// The headers of a request, and the request as bytes.

const TRACEPARENT = /^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$/;

export type Headers = ReadonlyArray<readonly [string, string]>;

export interface HeaderValues {
  readonly token?: string | undefined;
  readonly route?: string | undefined;
  readonly traceparent?: string | undefined;
}

/** Returns names, in small letters, and values. A traceparent of any other form than version 00's is left out. */
export function headersOf(deadlineMs: number, { token, route, traceparent }: HeaderValues): Headers {
  const headers: Array<readonly [string, string]> = [
    ["content-type", "application/json"],
    ["x-deadline-ms", String(deadlineMs)],
  ];
  if (token !== undefined) headers.push(["authorization", `Bearer ${token}`]);
  if (route !== undefined) headers.push(["x-paywarden-route", route]);
  if (traceparent !== undefined && TRACEPARENT.test(traceparent)) headers.push(["traceparent", traceparent]);
  return headers;
}

/** Returns a POST. The caller has checked that no header holds a control character. */
export function requestText(path: string, authority: string, headers: Headers, body: string): string {
  let lines = `POST ${path} HTTP/1.1\r\nhost: ${authority}\r\n`;
  for (const [name, value] of headers) lines += `${name}: ${value}\r\n`;
  return `${lines}content-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;
}
