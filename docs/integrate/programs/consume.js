// Prints decisions as they come: node consume.js BOOTSTRAP SCHEMAS GROUP
const fs = require("fs");
const path = require("path");
const avro = require("avsc");
const { Kafka, logLevel } = require("kafkajs");

const [bootstrap, folder, group] = process.argv.slice(2);
const read = (file) => JSON.parse(fs.readFileSync(path.join(folder, file), "utf8"));
const index = read("schemas.json");
const topicOf = (file) => index.find((entry) => entry.file === file).topic;
const typeOf = (file) => avro.Type.forSchema(read(file));

// By the id in a record's header: what it was written with.
const writers = new Map(index.flatMap((entry) => [entry.fingerprint, ...entry.registry_ids].map((id) => [id, entry.file])));

// The record as today's schema has it, whichever schema it was written with.
function decode(value, file) {
  const reader = typeOf(file);
  const writer = typeOf(writers.get(value.readUInt32BE(1)));
  return reader.fromBuffer(value.subarray(5), reader.createResolver(writer));
}

// At the usual level kafkajs writes its log to standard output, between the decisions.
const kafka = new Kafka({ clientId: "case-tool", brokers: bootstrap.split(","), logLevel: logLevel.WARN });
const names = new Map();

// Follows the topic of catalogues; returns when all that is there now is known.
async function followCatalogues() {
  const topic = topicOf("catalogues.avsc");
  const admin = kafka.admin();
  await admin.connect();
  const ends = await admin.fetchTopicOffsets(topic);
  await admin.disconnect();
  const unread = new Map(ends.filter((end) => Number(end.high) > Number(end.low)).map((end) => [end.partition, Number(end.high)]));
  // A group of this process alone: every process needs all catalogues.
  const consumer = kafka.consumer({ groupId: `${group}-catalogues-${process.pid}-${Date.now()}` });
  await consumer.connect();
  await consumer.subscribe({ topic, fromBeginning: true });
  await new Promise((done) => {
    if (unread.size === 0) done();
    consumer.run({
      eachMessage: async ({ partition, message }) => {
        const record = decode(message.value, "catalogues.avsc");
        names.set(record.digest, record.features.map((feature) => feature.name));
        if (Number(message.offset) >= unread.get(partition) - 1) unread.delete(partition);
        if (unread.size === 0) done();
      },
    });
  });
}

async function main() {
  await followCatalogues();
  // kafkajs reads what is committed, unless it is told otherwise.
  const consumer = kafka.consumer({ groupId: group, readUncommitted: false });
  await consumer.connect();
  await consumer.subscribe({ topic: topicOf("decisions.avsc"), fromBeginning: true });
  await consumer.run({
    eachMessage: async ({ message }) => {
      const decision = decode(message.value, "decisions.avsc");
      const features = {};
      (names.get(decision.catalogue_digest) || []).forEach((name, number) => {
        const value = decision.vector.readFloatLE(4 * number);
        if (!Number.isNaN(value)) features[name] = value;
      });
      const { payment_id, action, score, reasons } = decision;
      console.log(JSON.stringify({ payment_id, action, score, reasons, features }));
    },
  });
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
